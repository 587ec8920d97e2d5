"""Statistics of finished runs: DataFrames and arrays in, DataFrames and plain values out. Nothing here imports torch.

Each file has one subject: intervals over seeds (`compare`), bands along a run (`bands`), what pure noise does to a
covariance estimate (`spectra`), clouds of hidden states (`embed`), their distances with permuted labels (`clouds`), debiased
alignment (`alignment`) and what both say of a run (`hidden_drift`), forgetting against interference (`forgetting`,
`forgetting_tables`), comparison of arms over seeds and edits (`pairs`), effects of a changed spec (`switches`), runs or arms
against each other (`run_diff`, `run_effects`) and their curves (`run_curves`), tracking error without ground truth (`tracking`),
drift of the stream's moments (`drift`, `drift_tables`), growth of the weights (`growth`), collapse and horizon (`collapse`,
`horizon`), alarms at a stated level (`sequential`, `sequential_alarm`), retuning (`retune`, `retune_tables`), and the
oracles, bounds and null laws of the theory (`theory`).
"""
