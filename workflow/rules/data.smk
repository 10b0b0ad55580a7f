# validate, toy_data, index, split: seconds to minutes, no GPU.
#
# validate runs first by its priority and is part of every target, but no rule takes its output: it reads the whole
# experiment, of which the others read a part each.


rule validate:
    input:
        reads("validate"),
    output:
        lock="results/{experiment}/experiment.lock.yaml",
        record="results/{experiment}/validate/stage.json",
    log:
        "logs/{experiment}/validate.log",
    benchmark:
        "logs/{experiment}/validate.benchmark.tsv"
    localrule: True
    priority: 100
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        digest=PIPELINE.digest("validate"),
        file=PIPELINE.file,
    message:
        "checking experiment {wildcards.experiment}"
    shell:
        "ltpipe validate --experiment={params.file:q} > {log:q} 2>&1"


rule toy_data:
    input:
        reads("toy_data"),
    output:
        # Not the data: Snakemake removes outputs, whoever made them, before a job runs and when it fails.
        note="results/datasets/{dataset}/toy_data.json",
    log:
        "logs/datasets/{dataset}.toy_data.log",
    benchmark:
        "logs/datasets/{dataset}.toy_data.benchmark.tsv"
    wildcard_constraints:
        dataset=names(PIPELINE.drawn),
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        digest=PIPELINE.digest("toy_data"),
        file=PIPELINE.file,
    message:
        "drawing data set {wildcards.dataset}"
    shell:
        "ltpipe toy-data --experiment={params.file:q} > {log:q} 2>&1"


rule index:
    input:
        reads("index"),
    output:
        train=multiext(
            "results/datasets/{dataset}/train/",
            "info.json",
            "images.arrow",
            "categories.arrow",
            "annotations.arrow",
            "segments.arrow",
            "statistics.csv",
        ),
        val=multiext(
            "results/datasets/{dataset}/val/",
            "info.json",
            "images.arrow",
            "categories.arrow",
            "annotations.arrow",
            "segments.arrow",
            "statistics.csv",
        ),
        record="results/datasets/{dataset}/stage.json",
    log:
        "logs/datasets/{dataset}.log",
    benchmark:
        "logs/datasets/{dataset}.benchmark.tsv"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        digest=PIPELINE.digest("index"),
        file=PIPELINE.file,
    message:
        "indexing the annotations of {wildcards.dataset}"
    shell:
        "ltpipe index --experiment={params.file:q} > {log:q} 2>&1"


rule split:
    input:
        reads("split"),
    output:
        split="results/{experiment}/split/split.json",
        record="results/{experiment}/split/stage.json",
    log:
        "logs/{experiment}/split.log",
    benchmark:
        "logs/{experiment}/split.benchmark.tsv"
    wildcard_constraints:
        experiment=names(PIPELINE.with_holdout(False)),
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        digest=PIPELINE.digest("split"),
        file=PIPELINE.file,
    message:
        "class order and phases of {wildcards.experiment}"
    shell:
        "ltpipe split --experiment={params.file:q} --phase 0 > {log:q} 2>&1"


# The same for experiments that hold images out of training: one output more.
use rule split as split_holdout with:
    output:
        split="results/{experiment}/split/split.json",
        holdout="results/{experiment}/split/holdout.npz",
        record="results/{experiment}/split/stage.json",
    wildcard_constraints:
        experiment=names(PIPELINE.with_holdout(True)),


for phase in PHASES:

    rule:
        name:
            f"split_phase_{phase}"
        input:
            reads("split", phase),
        output:
            replay=f"results/{{experiment}}/split/phase{phase}/replay.npz",
            record=f"results/{{experiment}}/split/phase{phase}/stage.json",
        log:
            f"logs/{{experiment}}/split.phase{phase}.log",
        benchmark:
            f"logs/{{experiment}}/split.phase{phase}.benchmark.tsv"
        wildcard_constraints:
            experiment=names(PIPELINE.with_phase(phase)),
        threads: 1
        resources:
            mem_mb=growing(4000),
            runtime=growing(30),
        params:
            digest=PIPELINE.digest("split", phase),
            file=PIPELINE.file,
            phase=phase,
        message:
            "replay list of phase {params.phase} of {wildcards.experiment}"
        shell:
            "ltpipe split --experiment={params.file:q} --phase {params.phase:q} > {log:q} 2>&1"
