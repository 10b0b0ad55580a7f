# ltpipe: decoupled training of long-tailed instance segmenters.
#
#   snakemake --profile local all                  every active experiment (configs/pipeline.yaml) on this machine
#   snakemake --profile slurm all                  the same on a cluster
#   snakemake --profile slurm phase_2              up to one phase; all_<stage> for up to one stage
#   snakemake --profile slurm all -R lst_phase_2   that phase again, and what follows
#   snakemake all --rulegraph | dot -Tsvg          the graph
#   snakemake all --report report.html             tables, plots and provenance in one page
#
# Results: results/<experiment>/<stage>/; data sets: results/datasets/<name>/; logs and benchmarks: logs/<experiment>/.
from snakemake.utils import min_version

min_version("9.0")


configfile: "configs/pipeline.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


onstart:
    # Nothing is queued before every experiment has been checked, detector included; `keep-going` would not stop for it.
    # Inputs are checked before anything is removed. A killed stage continues where it stopped, unless -R, -f or -F asks
    # for it again.
    with clear_refusals():
        PIPELINE.validate()
        PIPELINE.reruns.begin(file for job in workflow.dag.needrun_jobs() for file in job.output)


# What was finished before a stage that has failed is put back.
onsuccess:
    PIPELINE.reruns.end()
    PIPELINE.tell()


onerror:
    PIPELINE.reruns.end()


# `all`, `all_<stage>` for up to one stage, `phase_<k>` for up to one phase; the first one is the default.
for target, records in TARGETS.items():

    rule:
        name:
            target
        localrule: True
        input:
            records,


include: "workflow/rules/stages.smk"
