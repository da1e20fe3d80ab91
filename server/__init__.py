"""The HTTP side of BitSkip Server: routes, streaming, metrics and the command line.

app          the application factory: routes, middleware and error handlers put together
context      what every route needs: engine, settings, model names, exporter
engine_api   the engine's interface as the server uses it
protocol     the bodies of requests, validated
wire         JSON in and out
completions  from a request to sampling parameters, submission and merging of prompts
choices      from engine outputs to the choices, usage and metrics of a response
streaming    server-sent events, pings, disconnects
errors       one table from exceptions to status codes, and the error body
middleware   request ids and the last line of defence
metrics      the Prometheus exporter
settings     every option, its environment variable and its help text
lifecycle    listening, signals, draining
cli          the `bitskip` command; its commands live in `commands`

Nothing here runs the model, and importing it imports no torch.
"""
