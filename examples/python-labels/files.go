// Package pythonlabels holds an extension in Python: labels.py, and sandgate_extension.py, which is all that an
// extension in Python needs of Sandgate. It is Go only so that `sandgate extension new` can carry the files along.
package pythonlabels

import "embed"

// Files are those that an extension in Python needs beside its script.
//
//go:embed sandgate_extension.py extension_pb2.py
var Files embed.FS
