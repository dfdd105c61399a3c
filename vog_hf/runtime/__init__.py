"""The machine: files, processes and memory. May import only `errors`.

`files` writes atomically and locks folders, `processes` runs a step on every process and shares its error, `memory`
reports free memory and halves batches that do not fit, `prefetch` prepares the next item in a thread, `progress` is the
bar on a terminal, and `hub_names` validates names of repositories.
"""
