"""The machine: files, processes and memory. May import `errors` alone.

`files` writes atomically and locks folders, `processes` runs a step on every process so that all see its error,
`memory` says what is free and halves batches that do not fit, `prefetch` reads ahead in a thread, `progress` is the bar
on a terminal, `hub_names` checks names of repositories.
"""
