package plan

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// Bounds on one object.
const (
	maxDepth = 32
	maxNodes = 20_000
	maxText  = 1 << 20 // bytes of all keys and strings
	maxName  = 253
)

// normalize copies a JSON tree, with numbers as the schema library wants them: int64 where they are whole, float64
// otherwise. It refuses what JSON cannot hold, null, and what is beyond the bounds.
func normalize(fields map[string]any) (map[string]any, error) {
	n := &normalizer{}
	v, err := n.value(fields, 0)
	if err != nil {
		return nil, err
	}
	out, _ := v.(map[string]any)
	return out, nil
}

type normalizer struct{ nodes, text int }

func (n *normalizer) value(v any, depth int) (any, error) {
	if n.nodes++; n.nodes > maxNodes || depth > maxDepth || n.text > maxText {
		return nil, fmt.Errorf("it is too large: at most %d values, %d levels and %d bytes", maxNodes, maxDepth, maxText)
	}
	switch x := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, e := range x {
			if err := n.string(k); err != nil {
				return nil, err
			}
			c, err := n.value(e, depth+1)
			if err != nil {
				return nil, err
			}
			out[k] = c
		}
		return out, nil
	case []any:
		out := make([]any, len(x))
		for i, e := range x {
			c, err := n.value(e, depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = c
		}
		return out, nil
	case string:
		return x, n.string(x)
	case bool:
		return x, nil
	case nil:
		return nil, fmt.Errorf("a null is no value: leave the field out")
	}
	return number(v)
}

func (n *normalizer) string(s string) error {
	n.text += len(s)
	if !utf8.ValidString(s) {
		return fmt.Errorf("a string is not UTF-8")
	}
	return nil
}

func number(v any) (any, error) {
	switch x := v.(type) {
	case int:
		return int64(x), nil
	case int32:
		return int64(x), nil
	case int64:
		return x, nil
	case uint32:
		return int64(x), nil
	case float32:
		return number(float64(x))
	case float64:
		switch {
		case math.IsNaN(x) || math.IsInf(x, 0):
			return nil, fmt.Errorf("a number is not finite")
		case x == math.Trunc(x) && math.Abs(x) < 1<<53:
			return int64(x), nil
		}
		return x, nil
	case json.Number:
		if i, err := x.Int64(); err == nil {
			return i, nil
		}
		f, err := x.Float64()
		if err != nil {
			return nil, fmt.Errorf("a number cannot be represented")
		}
		return number(f)
	}
	return nil, fmt.Errorf("a %T is no JSON value", v)
}

// checkName says whether name can be an object's.
func checkName(name string) bool {
	return name != "" && len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsAny(name, "/\x00\n")
}
