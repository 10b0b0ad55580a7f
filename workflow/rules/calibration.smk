# features and calibrate: frozen RoI features once, then any number of calibrators on them.


rule features:
    input:
        model=PIPELINE.model,
        split=PIPELINE.split,
        store=PIPELINE.store("train"),
    output:
        plan="results/{experiment}/features/plan.npz",
        record="results/{experiment}/features/stage.json",
    log:
        "logs/{experiment}/features.log",
    benchmark:
        "logs/{experiment}/features.benchmark.tsv"
    threads: 4
    resources:
        mem_mb=growing(16000),
        runtime=growing(720),
    params:
        digest=PIPELINE.digest("features"),
        file=PIPELINE.file,
    message:
        "RoI features of {wildcards.experiment}; follow it in {log}"
    shell:
        "ltpipe features --experiment={params.file:q} > {log:q} 2>&1"


rule calibrate:
    input:
        model=PIPELINE.model,
        features=PIPELINE.features,
        head=PIPELINE.head,
        split=PIPELINE.split,
        store=PIPELINE.store("train"),
    output:
        model="results/{experiment}/calibrate/{calibrator}/model.pth",
        config="results/{experiment}/calibrate/{calibrator}/config.py",
        record="results/{experiment}/calibrate/{calibrator}/stage.json",
    log:
        "logs/{experiment}/calibrate.{calibrator}.log",
    benchmark:
        "logs/{experiment}/calibrate.{calibrator}.benchmark.tsv"
    threads: 4
    resources:
        mem_mb=growing(16000),
        runtime=growing(480),
    params:
        digest=PIPELINE.digest("calibrate", "calibrator"),
        file=PIPELINE.file,
    message:
        "calibrator {wildcards.calibrator} of {wildcards.experiment}; follow it in {log}"
    shell:
        "ltpipe calibrate --experiment={params.file:q} --name {wildcards.calibrator:q} > {log:q} 2>&1"
