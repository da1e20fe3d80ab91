"""The load generator behind `bitskip bench`.

`plan` says what is sent and when, `runner` sends it, `records` keeps what came back, `summary`
makes figures of it, and `server_side` asks the server's own histograms about the same run.
"""
