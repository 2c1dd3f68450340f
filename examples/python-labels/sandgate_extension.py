"""What an extension of a Sandgate gateway needs, in Python: grpcio, protobuf and this file.

docs/extension-protocol.md says why each step is there. Write a class with one method for each phase that it cares
about, and serve an instance of it:

    class Labels(Extension):
        name, version, uses = "labels", "1.0.0", ["labels"]

        def prepare_plan(self, call, answer):
            answer.set(call.feature("labels"), {"made-by": "python"})

    serve(Labels())

A phase may be called again, with the same call.key: answer the same. What is taken is taken by call.id and kept on
disk, answer.hold says all that is held, and a phase that releases and returns has released everything.
"""

import collections
import json
import os
import signal
import sys
import threading
from concurrent import futures

import grpc

import extension_pb2 as pb

COOKIE = ("SANDGATE_EXTENSION", "4f0d7c5e-launched-by-a-sandgate-gateway")
LAUNCH_FD = 3
SERVICE = "sandgate.extension.v1.Extension"
PROTOCOL = "1"
MAX_REQUEST, MAX_ANSWER, PAGE = 16 << 20, 4 << 20, 256

PURE = {"validate_request": pb.ValidateResponse, "prepare_plan": pb.PreparePlanResponse}
SETUP = ("before_create", "before_start", "ensure_workspace")
QUIESCE = ("before_stop", "before_delete")
HOLD = ("after_create", "after_ready", "after_stop", "after_delete", "on_create_failed", "delete_workspace")
RELEASES = {"after_stop": "run", "after_delete": "sandbox", "on_create_failed": "sandbox", "delete_workspace": "workspace"}
TAKES = {"before_create": "sandbox", "after_create": "sandbox", "before_start": "run", "after_ready": "run", "ensure_workspace": "workspace"}


class Failure(Exception):
    """A failure with a gRPC status of its own. Any other exception is INTERNAL. A decision is answer.deny, no failure."""

    def __init__(self, message, code=grpc.StatusCode.UNAVAILABLE):
        super().__init__(message)
        self.code = code


class Extension:
    """What an extension says of itself. A method named like a phase is called in it; with `holdings` and `repair` it
    reconciles; `configure(config)` yields (path, summary, detail) for each thing that is wrong; `drain()` finishes."""

    name = version = ""
    requires, uses, points, provides = (), (), (), ()
    schema = None  # of the config block, as JSON has it
    state_reads, state_writes = (), 0

    def phases(self):
        names = [p for p in (*PURE, *SETUP, *QUIESCE, *HOLD) if hasattr(self, p)]
        return names + (["reconcile"] if hasattr(self, "holdings") else [])


class Call:
    """Who a call is about, and what the grant lets the extension see."""

    def __init__(self, request, contract):
        self.request, self.contract = request, contract
        self.step, self.subject = request.step, request.subject
        self.phase, self.key, self.number, self.bind = self.step.phase, self.step.key, self.step.number, self.step.bind
        self.cause, self.preview = self.step.cause, self.step.preview
        self.sandbox = self.subject.sandbox if self.subject.HasField("sandbox") else None
        self.workspace = self.subject.workspace
        self.labels, self.image = dict(self.subject.labels), self.subject.image

    @property
    def id(self):
        """What to allocate by: the sandbox's id, or in the phases of a workspace the workspace's."""
        return self.sandbox.id if self.sandbox is not None else self.workspace.id

    def feature(self, name):
        """A feature of the driver that was negotiated for this bind, or None."""
        return next((f for f in self.contract.features if f.name == name), None) if self.contract else None

    def state(self):
        """The version and the payload that were last kept, or None."""
        if not self.request.HasField("state"):
            return None
        return self.request.state.schema_version, self.request.state.payload


class Answer:
    """What comes back. A method that the phase does not allow fails."""

    def __init__(self, message):
        self.message = message

    def deny(self, summary, detail="", path=""):
        self.message.denied = True
        self.message.diagnostics.add(summary=summary, detail=detail, path=path)

    def require(self, feature):
        self.message.requires.append(feature)

    def contribute(self, kind, name, fields):
        self.message.contribute.add(kind=kind, name=name).fields.update(fields)

    def set(self, feature, value):
        """Contributes a value at a feature's point."""
        kind, _, path = feature.point.partition(".")
        for segment in reversed(path.split(".")) if path else ():
            value = {segment: value}
        self.contribute(kind, feature.object, value)

    def hold(self, kind, id, text=""):
        self.message.entries.add(kind=kind, id=id, text=text)

    def keep(self, version, payload):
        self.message.state.schema_version, self.message.state.payload = version, payload


class _Subject:
    """One call at a time, and none that was overtaken."""

    def __init__(self):
        self.turn, self.highest = threading.Lock(), 0


class _Server:
    REMEMBERED = 100_000  # subjects whose last number is known

    def __init__(self, extension):
        self.extension = extension
        self.lock, self.contracts, self.subjects = threading.Lock(), {}, collections.OrderedDict()

    def handlers(self):
        def unary(fn, request):
            return grpc.unary_unary_rpc_method_handler(fn, request_deserializer=request.FromString,
                                                       response_serializer=lambda m: m.SerializeToString())

        out = {"Describe": unary(self.describe, pb.DescribeRequest), "Configure": unary(self.configure, pb.ConfigureRequest),
               "Health": unary(self.health, pb.HealthRequest), "Drain": unary(self.drain, pb.DrainRequest)}
        for phase in self.extension.phases():
            if phase == "reconcile":
                out["Reconcile"] = grpc.stream_stream_rpc_method_handler(
                    self.reconcile, request_deserializer=pb.ReconcileRequest.FromString, response_serializer=lambda m: m.SerializeToString())
                out["Repair"] = unary(self.serve("repair", pb.HoldResponse), pb.RepairRequest)
                continue
            answer = PURE.get(phase) or (pb.SetupResponse if phase in SETUP else pb.QuiesceResponse if phase in QUIESCE else pb.HoldResponse)
            method = "".join(word.capitalize() for word in phase.split("_"))
            out[method] = unary(self.serve(phase, answer), pb.PureRequest if phase in PURE else pb.PhaseRequest)
        return out  # what is not here is answered with UNIMPLEMENTED

    def describe(self, request, context):
        x = self.extension
        return pb.DescribeResponse(manifest=pb.Manifest(
            name=x.name, version=x.version, phases=x.phases(), points=x.points, requires=x.requires, uses=x.uses, provides=x.provides,
            config_schema=json.dumps(x.schema).encode() if x.schema else b"", state_reads=x.state_reads, state_writes=x.state_writes))

    def configure(self, request, context):
        answer = pb.ConfigureResponse()
        try:
            config = json.loads(request.config or b"{}")
            if not isinstance(config, dict):
                raise ValueError("it is no object")
        except ValueError as e:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"configuration: {e}")
        with self.guard(context):
            for path, summary, detail in getattr(self.extension, "configure", lambda config: ())(config) or ():
                answer.diagnostics.add(path=path, summary=summary, detail=detail)
        if not answer.diagnostics:
            with self.lock:
                self.contracts = {c.bind: c for c in request.contracts}
        return answer

    def health(self, request, context):
        return pb.HealthResponse(ready=True)

    def drain(self, request, context):
        with self.guard(context):
            getattr(self.extension, "drain", lambda: None)()
        return pb.DrainResponse()

    class guard:
        """An exception fails the call, and says what happened."""

        def __init__(self, context):
            self.context = context

        def __enter__(self):
            pass

        def __exit__(self, kind, e, trace):
            if isinstance(e, Failure):
                self.context.abort(e.code, str(e))
            elif isinstance(e, Exception) and self.context.code() is None:
                log("error", f"{kind.__name__}: {e}", line=trace.tb_next.tb_lineno if trace.tb_next else trace.tb_lineno)
                self.context.abort(grpc.StatusCode.INTERNAL, f"{kind.__name__}: {e}")

    def serve(self, name, answer):
        """Makes the handler of a phase."""
        method = getattr(self.extension, name)

        def handle(request, context):
            with self.lock:
                contract = self.contracts.get(request.step.bind)
            call, out = Call(request, contract), Answer(answer())
            if name in PURE:
                with self.guard(context):
                    method(call, out)
                return out.message
            if not call.id:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call does not name its sandbox or workspace by an id")
            subject = self.subject(call.id)
            while not subject.turn.acquire(timeout=0.05):  # the call before may not care that it was cancelled
                if not context.is_active():
                    context.abort(grpc.StatusCode.CANCELLED, "the caller gave up")
            try:
                if call.number < subject.highest:
                    context.abort(grpc.StatusCode.ABORTED, f"call {call.number} was overtaken by {subject.highest}")
                if not context.is_active():
                    context.abort(grpc.StatusCode.CANCELLED, "the caller gave up")
                try:
                    with self.guard(context):
                        method(call, out)
                finally:
                    subject.highest = call.number
            finally:
                subject.turn.release()
            return out.message

        return handle

    def subject(self, id):
        with self.lock:
            subject = self.subjects.setdefault(id, _Subject())
            self.subjects.move_to_end(id)
            if len(self.subjects) > self.REMEMBERED and not next(iter(self.subjects.values())).turn.locked():
                self.subjects.popitem(last=False)
            return subject

    def reconcile(self, pages, context):
        bind = ""
        for page in pages:
            bind = page.bind
            if page.last:
                break
        with self.guard(context):
            items = list(self.extension.holdings(bind))
        for i in range(0, len(items), PAGE):
            yield pb.ReconcileResponse(items=items[i : i + PAGE])
        yield pb.ReconcileResponse(last=True)


def log(level, message, **more):
    """Writes a line that reaches the gateway's log with its level. Anything else that is printed does too."""
    print(json.dumps({"@level": level, "@message": message, **more}), file=sys.stderr, flush=True)


def _launch():
    """Reads the line on the launch descriptor, and nothing after it."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(LAUNCH_FD, 1)
        if not chunk:
            sys.exit(f"descriptor {LAUNCH_FD} ended before the launch was read: was this program started by a gateway?")
        line += chunk
    return json.loads(line)


def serve(extension):
    """Serves until the gateway says that it is enough, or is gone."""
    if os.environ.get(COOKIE[0]) != COOKIE[1]:
        sys.exit(f"{extension.name} is a Sandgate extension. It is started by a gateway, not by hand; to check it:\n"
                 f"  sandgate extension verify {sys.argv[0]}")
    handshake = os.dup(1)  # what anybody prints from now on goes to the log, not into the handshake
    os.dup2(2, 1)
    launch = _launch()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=[
        ("grpc.max_receive_message_length", MAX_REQUEST), ("grpc.max_send_message_length", MAX_ANSWER)])
    implementation = _Server(extension)
    serving = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")  # HealthCheckResponse: SERVING
    server.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler(SERVICE, implementation.handlers()),
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": serving})))
    # Both certificates are authorities of themselves alone, so that to trust the host's is to trust this one host.
    credentials = grpc.ssl_server_credentials([(launch["key"].encode(), launch["certificate"].encode())],
                                              launch["host_certificate"].encode(), require_client_auth=True)
    socket = os.path.join(os.environ["PLUGIN_UNIX_SOCKET_DIR"], "s")
    server.add_secure_port("unix:" + socket, credentials)
    for name in [n for n in os.environ if n.startswith("PLUGIN_") or n == COOKIE[0]]:
        del os.environ[name]
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow_host():
        while os.read(LAUNCH_FD, 4096):
            pass
        over.set()

    threading.Thread(target=follow_host, daemon=True).start()
    server.start()
    os.write(handshake, f"1|{PROTOCOL}|unix|{socket}|grpc|\n".encode())
    os.close(handshake)
    over.wait()
    server.stop(grace=2).wait()
    os._exit(0)  # a handler that does not return is not waited for
