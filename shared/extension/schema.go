package extension

// ConfigSchema describes a `config` block: of an extension in the configuration, or of a driver. It travels as JSON
// in Manifest.ConfigSchema. The gateway decodes with it and hands over JSON of the same shape: an object with a
// member per attribute; a block type without labels and with Max 1 is an object, one without labels otherwise a
// list of objects, one with labels an object keyed by label, nested once per label.
type ConfigSchema struct {
	Attributes []Attribute `json:"attributes,omitempty"`
	Blocks     []Block     `json:"blocks,omitempty"`
}

// Attribute is one setting.
type Attribute struct {
	Name        string   `json:"name"`
	Type        string   `json:"type"` // an HCL type expression: string, number, bool, list(string), map(string), object({…}), any
	Required    bool     `json:"required,omitempty"`
	Default     any      `json:"default,omitempty"`
	Sensitive   bool     `json:"sensitive,omitempty"`  // never logged or shown; its digest stands for it
	Deprecated  string   `json:"deprecated,omitempty"` // what to use instead
	Enum        []any    `json:"enum,omitempty"`
	Whole       bool     `json:"whole,omitempty"` // of a number: it has no fraction, and 64 bits hold it
	Min         *float64 `json:"min,omitempty"`   // of a number
	Max         *float64 `json:"max,omitempty"`
	Description string   `json:"description,omitempty"`
	Example     string   `json:"example,omitempty"`
}

// Block is a nested block type.
type Block struct {
	Type        string       `json:"type"`
	Labels      []string     `json:"labels,omitempty"` // what each label is called
	Min         int          `json:"min,omitempty"`
	Max         int          `json:"max,omitempty"` // 0: any number
	Description string       `json:"description,omitempty"`
	Body        ConfigSchema `json:"body"`
}
