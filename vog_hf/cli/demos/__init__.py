"""The demos of `vog-hf demo`, on data made on the spot; `vog_hf.demo` has their public names.

`digits` is the default one. `planted` trains a model of a planted task (`planted_tasks`), whose faults are known, and
prints which columns find them; `names`, `shapes`, `boxes` and `questions` make data, faults and model of one each.
`offline` keeps a tracked run on this machine.
"""
