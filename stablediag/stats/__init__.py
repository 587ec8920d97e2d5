"""Statistics of finished runs: DataFrames and arrays in, DataFrames and plain values out. Nothing here imports torch.

Each file has one subject: intervals over seeds (`compare`), bands along a run (`bands`), what pure noise does to a
covariance estimate (`spectra`), and clouds of hidden states (`embed`).
"""
