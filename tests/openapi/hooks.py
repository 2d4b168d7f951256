"""What schemathesis is told of this server beside its document."""

import schemathesis

MODEL = "null"


@schemathesis.hook
def map_body(context, body):
    """Names the model that is served in most requests that name any, lest all end there."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) < 9:
        return body | {"model": MODEL}
    return body


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """The same for `/v1/models/{id}`."""
    operation = getattr(context, "operation", None)
    if operation is not None and operation.path == "/v1/models/{id}" and path_parameters:
        return path_parameters | {"id": MODEL}
    return path_parameters


@schemathesis.hook
def before_call(context, case, kwargs):
    """Gives requests that have a timeout some time, lest they end in a 503 as they should."""
    timeout = case.body.get("timeout") if isinstance(case.body, dict) else None
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if is_number and 0.001 <= timeout <= 86400:
        case.body["timeout"] = 86400
