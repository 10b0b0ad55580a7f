# base, distill and the incremental phases: GPU work. What a GPU job gets (partition, GPUs, memory, time) is said in the
# profiles only. Resume state lies in the undeclared folder work/ beside the outputs and so survives retries.


rule base:
    input:
        split=PIPELINE.split,
        holdout=PIPELINE.holdout,
        store=PIPELINE.store("train"),
        start=PIPELINE.start,
    output:
        model="results/{experiment}/base/model.pth",
        config="results/{experiment}/base/config.py",
        record="results/{experiment}/base/stage.json",
    log:
        "logs/{experiment}/base.log",
    benchmark:
        "logs/{experiment}/base.benchmark.tsv"
    threads: 8
    resources:
        mem_mb=growing(16000),
        runtime=growing(1440),
    params:
        digest=PIPELINE.digest("base"),
        file=PIPELINE.file,
    message:
        "base training of {wildcards.experiment}, {threads} threads; follow it in {log}"
    shell:
        "ltpipe base --experiment={params.file:q} > {log:q} 2>&1"


for phase in PHASES:

    if PIPELINE.with_cached_teacher(phase):

        rule:
            name:
                f"distill_phase_{phase}"
            input:
                model=PIPELINE.before(phase),
                split=PIPELINE.split,
                store=PIPELINE.store("train"),
            output:
                teacher=f"results/{{experiment}}/distill/phase{phase}/teacher.npz",
                record=f"results/{{experiment}}/distill/phase{phase}/stage.json",
            log:
                f"logs/{{experiment}}/distill.phase{phase}.log",
            benchmark:
                f"logs/{{experiment}}/distill.phase{phase}.benchmark.tsv"
            wildcard_constraints:
                experiment=names(PIPELINE.with_cached_teacher(phase)),
            threads: 4
            resources:
                mem_mb=growing(8000),
                runtime=growing(240),
            params:
                digest=PIPELINE.digest("distill", phase),
                file=PIPELINE.file,
                phase=phase,
            message:
                "teacher of phase {params.phase} of {wildcards.experiment}; follow it in {log}"
            shell:
                "ltpipe distill --experiment={params.file:q} --phase {params.phase:q} > {log:q} 2>&1"

    rule:
        name:
            f"lst_phase_{phase}"
        input:
            model=PIPELINE.before(phase),
            split=PIPELINE.split,
            replay=PIPELINE.replay(phase),
            holdout=PIPELINE.holdout,
            store=PIPELINE.store("train"),
            teacher=PIPELINE.teacher(phase),
        output:
            model=f"results/{{experiment}}/lst/phase{phase}/model.pth",
            config=f"results/{{experiment}}/lst/phase{phase}/config.py",
            record=f"results/{{experiment}}/lst/phase{phase}/stage.json",
        log:
            f"logs/{{experiment}}/lst.phase{phase}.log",
        benchmark:
            f"logs/{{experiment}}/lst.phase{phase}.benchmark.tsv"
        wildcard_constraints:
            experiment=names(PIPELINE.with_phase(phase)),
        threads: 8
        resources:
            mem_mb=growing(16000),
            runtime=growing(1440),
        params:
            digest=PIPELINE.digest("lst", phase),
            file=PIPELINE.file,
            phase=phase,
        message:
            "LST phase {params.phase} of {wildcards.experiment}, {threads} threads; follow it in {log}"
        shell:
            "ltpipe lst --experiment={params.file:q} --phase {params.phase:q} > {log:q} 2>&1"
