# One rule for each stage of the table in ltpipe/pipeline/stages.py; `snakemake --list-rules` names them all.
#
# validate runs first by its priority and is part of every target, but no rule takes its output: it reads the whole
# experiment, of which the others read a part each. What a GPU job gets (partition, GPUs, memory, time) is said in the
# profiles only. Resume state lies in the undeclared folder work/ beside the outputs and so survives retries.


for one in RULES:

    rule:
        name:
            one.name
        input:
            reads(one.stage.name, one.key),
        output:
            *leaves(one),
        log:
            str(one.log),
        benchmark:
            str(one.benchmark)
        wildcard_constraints:
            **{wildcard: names(allowed) for wildcard, allowed in one.wildcards.items()},
        localrule: one.stage.local
        priority: 100 if one.stage.local else 0
        threads: one.stage.threads
        resources:
            mem_mb=growing(one.stage.mem_mb),
            runtime=growing(one.stage.runtime),
        params:
            digest=PIPELINE.digest(one.stage.name, one.key),
            command=PIPELINE.command(one.stage.name, one.key),
        message:
            one.message
        shell:
            # Read when a job runs: the same text for all rules.
            "{params.command} > {log:q} 2>&1"


# Data sets that an experiment asks for are drawn. No stage: people have data of their own.
rule toy_data:
    input:
        reads("toy-data"),
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
        digest=PIPELINE.digest("toy-data"),
        command=PIPELINE.command("toy-data"),
    message:
        "drawing data set {wildcards.dataset}"
    shell:
        "{params.command} > {log:q} 2>&1"
