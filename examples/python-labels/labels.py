#!/usr/bin/python3
"""An extension that labels sandboxes, refuses labels that are taken, and keeps a register of the sandboxes that live:
a file for each in a directory."""

import json
import os
import sys

# A gateway runs the script from a descriptor, and lays its files into a directory of their own.
sys.path.insert(0, os.environ.get("SANDGATE_PROGRAM_DIR") or os.path.dirname(os.path.abspath(__file__)))

import extension_pb2 as pb
from sandgate_extension import Extension, Failure, serve


class Labels(Extension):
    name, version = "python-labels", "1.0.0"
    uses, provides = ["labels"], ["register"]
    schema = {"attributes": [
        {"name": "labels", "type": "map(string)", "default": {}, "description": "what every sandbox is labelled with"},
        {"name": "forbidden", "type": "list(string)", "default": [], "description": "labels that a request may not bring"},
        {"name": "register", "type": "string", "required": True, "description": "the directory of the register; absolute"},
    ]}

    labels, forbidden, register = {}, [], None

    def configure(self, config):
        labels, forbidden, register = config.get("labels") or {}, config.get("forbidden") or [], config.get("register")
        if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
            yield "labels", "are no map of texts", ""
        elif not isinstance(forbidden, list) or not all(isinstance(v, str) for v in forbidden):
            yield "forbidden", "is no list of texts", ""
        elif not isinstance(register, str) or not os.path.isabs(register) or "\0" in register:
            yield "register", "is not an absolute path", "Name the directory of the register."
        else:
            os.makedirs(register, exist_ok=True)
            self.labels, self.forbidden, self.register = labels, forbidden, register

    def validate_request(self, call, answer):
        for name in sorted(set(self.forbidden) & set(call.labels)):
            answer.deny("is not for a request to set", path="labels." + name)

    def prepare_plan(self, call, answer):
        feature = call.feature("labels")
        if feature and self.labels:
            answer.set(feature, self.labels)

    def path(self, id):
        if not id or "/" in id or id.startswith("."):
            raise Failure(f"{id!r} cannot be the name of a file")
        return os.path.join(self.register, id)

    def before_create(self, call, answer):
        self.enter(call)
        answer.hold("registration", call.id, "in " + self.register)

    def enter(self, call):
        path = self.path(call.id)
        if os.path.exists(path):
            return  # it was asked before
        s, w = call.sandbox, call.workspace
        record = {"bind": call.bind, "sandbox": [s.id, s.driver, s.workspace, s.workspace_id, s.name], "workspace": [w.id, w.driver, w.name]}
        with open(path + ".new", "w") as f:
            json.dump(record, f)
            f.flush()
            os.fsync(f.fileno())
        os.rename(path + ".new", path)

    def remove(self, call):
        try:
            os.unlink(self.path(call.id))
        except FileNotFoundError:
            pass  # it was asked before, or the step in doubt took nothing

    def after_delete(self, call, answer):
        self.remove(call)

    def on_create_failed(self, call, answer):
        self.remove(call)

    def holdings(self, bind):
        for name in sorted(os.listdir(self.register)):
            if name.endswith(".new"):
                continue
            try:
                with open(os.path.join(self.register, name)) as f:
                    record = json.load(f)
            except FileNotFoundError:
                continue  # it was released meanwhile
            if record["bind"] != bind:
                continue
            s, w = record["sandbox"], record["workspace"]
            yield pb.ReconcileItem(
                sandbox=pb.Identity(id=s[0], driver=s[1], workspace=s[2], workspace_id=s[3], name=s[4]),
                workspace=pb.Workspace(id=w[0], driver=w[1], name=w[2]), lifetime="sandbox",
                entries=[pb.Entry(kind="registration", id=name)])

    def repair(self, call, answer):
        if call.request.orphans:
            self.remove(call)
        if call.request.lost:
            self.enter(call)
        if os.path.exists(self.path(call.id)):
            answer.hold("registration", call.id, "in " + self.register)


if __name__ == "__main__":
    serve(Labels())
