# Small jobs for tests/test_slurm.py, each of which goes wrong in its own way; <name>.count has a
# line per attempt. Writes <name>.txt.


def grown(amount):
    return lambda wildcards, attempt: attempt * amount


rule all:
    input:
        expand("{name}.txt", name=["fine", "failing", "cancelled", "greedy"]),
    localrule: True


rule fine:
    output:
        "fine.txt",
    resources:
        mem_mb=grown(1000),
        runtime=grown(5),
    shell:
        "echo >> fine.count; touch {output}"


# As long as there is no file `mended`.
rule failing:
    output:
        "failing.txt",
    log:
        "logs/failing.log",
    resources:
        mem_mb=grown(1000),
        runtime=grown(5),
    shell:
        "echo >> failing.count; echo 'the planet is missing' > {log}; "
        "test -e mended; touch {output}"


# At the first attempt somebody cancels it.
rule cancelled:
    output:
        "cancelled.txt",
    resources:
        mem_mb=grown(1000),
        runtime=grown(5),
    shell:
        "echo >> cancelled.count; "
        "test $(wc -l < cancelled.count) -gt 1 || {{ scancel $SLURM_JOB_ID; sleep 60; }}; "
        "touch {output}"


# Needs more memory than it is given at the first attempt, and holds it until that is noticed.
rule greedy:
    output:
        "greedy.txt",
    resources:
        mem_mb=grown(600),
        runtime=grown(5),
    shell:
        "echo >> greedy.count; "
        "python3 -c 'import time; block = bytes(range(256)) * (3 * 10**6); time.sleep(5)'; "
        "touch {output}"
