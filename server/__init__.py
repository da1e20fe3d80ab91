"""The HTTP side of BitSkip Server: routes, streaming, metrics and the command line.

app          the application factory: routes, middleware and error handlers put together
context      what every route needs: engine, settings, model names, exporter
engine_api   the engine's interface as the server uses it
routes       the endpoints
protocol     the bodies of requests, validated, and the shape of answers
wire         JSON in and out
openapi      /openapi.json and /docs
prompts      from a request to token ids; chat_template: from messages to a prompt
generation   from a request to sampling parameters, submission and merging of prompts
limits       what one request may ask for at most
admission    who may wait for a place in the engine, and how long
choices      from engine outputs to the parts of a choice
formats      how each endpoint writes choices; logprobs: the three forms of these
accounting   the usage and metrics of a response
streaming    server-sent events, pings, disconnects
errors       one table from exceptions to status codes, and the error body
middleware   request ids and the last line of defence
auth         API keys; body_limit: the size of bodies
metrics      the Prometheus exporter
settings     every option: flag, environment variable, key of the settings file
settings_file  that file
listener     the socket: TCP or Unix, certificates
model_source from MODEL to a directory: the hub, the pack cache
loading      loading beside everything else
lifecycle    answering while the model is loaded, signals, draining
interpreter  settings of Python that keep the event loop prompt
summary      what a server says of itself when it is ready; version: the package's
cli          the `bitskip` command; its commands live in `commands`

Nothing here runs the model, and importing it imports no torch.
"""
