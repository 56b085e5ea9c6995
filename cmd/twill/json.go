package main

import (
	"encoding/json"
	"io"
)

// writeJSON writes v for --json.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false) // remedies are meant to be copied
	return e.Encode(v)
}
