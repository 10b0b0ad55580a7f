# The active experiments; everything the rules ask is answered by ltpipe.pipeline.rules, which never imports torch.
# Nothing is changed while the rules are read or in a dry run.
import atexit

from ltpipe.run.snakemake_lock import check_owner
from ltpipe.pipeline.refusals import clear_refusals
from ltpipe.pipeline.rules import Pipeline, growing

with clear_refusals():
    PIPELINE = Pipeline(config["experiments"])
    # Everything that can be wrong with the number of phases is said here and not in an input function.
    TARGETS = PIPELINE.targets
    RULES = list(PIPELINE.rules())
    PIPELINE.resources_by_stage(workflow.resource_settings)
    if workflow.is_main_process:
        check_owner()
        PIPELINE.reruns.steer(workflow)
        atexit.register(PIPELINE.tell_if_nothing_ran)
    else:
        PIPELINE.reruns.serve(workflow)


def reads(stage, key=None):
    """Input function: files that a stage reads. Times of those that stay mean nothing: ltpipe compares contents."""

    def of_wildcards(wildcards):
        with clear_refusals():
            files = PIPELINE.inputs(stage, key, wildcards)
        return [ancient(file) if stays else file for file, stays in files.items()]

    return of_wildcards


def leaves(one):
    """Outputs of a rule, those marked that `snakemake --report` shows."""
    for file in one.outputs:
        shown = one.stage.shown.get(file.name)
        if shown is None:
            yield str(file)
        else:
            label = ("what", shown.label) if shown.pattern is None else (shown.label, f"{{{shown.label}}}")
            yield report(
                str(file) if shown.pattern is None else directory(str(file)),
                patterns=[] if shown.pattern is None else [shown.pattern],
                caption=f"../report/{shown.caption}",
                category=shown.category,
                labels={"experiment": "{experiment}", label[0]: label[1]},
            )


def names(allowed):
    """A pattern for these names and no others."""
    return "|".join(map(re.escape, allowed)) or "none"
