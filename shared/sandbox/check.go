package sandbox

import (
	"cmp"
	"encoding/json"
	"slices"

	"github.com/sandgate/sandgate/shared/fault"
)

func isObject(raw json.RawMessage) bool {
	if len(raw) == 0 {
		return true
	}
	var object map[string]json.RawMessage
	return json.Unmarshal(raw, &object) == nil && object != nil
}

func sortDiagnostics(d []fault.Diagnostic) {
	slices.SortFunc(d, func(a, b fault.Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Summary, b.Summary))
	})
}
