# evaluate and report: any checkpoint to numbers, all numbers to tables and plots.


rule evaluate:
    input:
        model=PIPELINE.model,
        split=PIPELINE.split,
        store=PIPELINE.store("val"),
        counts=PIPELINE.store("train"),
    output:
        predictions="results/{experiment}/evaluate/{checkpoint}/predictions.arrow",
        metrics="results/{experiment}/evaluate/{checkpoint}/metrics.json",
        per_class="results/{experiment}/evaluate/{checkpoint}/per_class.csv",
        tensors="results/{experiment}/evaluate/{checkpoint}/tensors.npz",
        record="results/{experiment}/evaluate/{checkpoint}/stage.json",
    log:
        "logs/{experiment}/evaluate.{checkpoint}.log",
    benchmark:
        "logs/{experiment}/evaluate.{checkpoint}.benchmark.tsv"
    threads: 4
    resources:
        mem_mb=growing(8000),
        runtime=growing(240),
    params:
        digest=PIPELINE.digest("evaluate", "checkpoint"),
        file=PIPELINE.file,
    message:
        "measuring {wildcards.checkpoint} of {wildcards.experiment}; follow it in {log}"
    shell:
        "ltpipe evaluate --experiment={params.file:q} --checkpoint {wildcards.checkpoint:q} > {log:q} 2>&1"


rule report:
    input:
        PIPELINE.measurements,
    output:
        page=report(
            "results/{experiment}/report/report.html",
            caption="../report/page.rst",
            category="Reports",
            labels={"experiment": "{experiment}", "what": "page"},
        ),
        summary=report(
            "results/{experiment}/report/summary.csv",
            caption="../report/summary.rst",
            category="Reports",
            labels={"experiment": "{experiment}", "what": "table"},
        ),
        figures=report(
            directory("results/{experiment}/report/figures"),
            patterns=["{figure}.png"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"experiment": "{experiment}", "figure": "{figure}"},
        ),
        record="results/{experiment}/report/stage.json",
    log:
        "logs/{experiment}/report.log",
    benchmark:
        "logs/{experiment}/report.benchmark.tsv"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        digest=PIPELINE.digest("report"),
        file=PIPELINE.file,
    message:
        "report of {wildcards.experiment}"
    shell:
        "ltpipe report --experiment={params.file:q} > {log:q} 2>&1"
