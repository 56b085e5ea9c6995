package lease

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/twillnet/twill/lease/internal/jsonerr"
)

// SyntaxError reports where a text stops being valid JSON.
type SyntaxError struct {
	Line, Column int // from 1, columns in bytes
	Err          error
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("line %d, column %d: %v", e.Line, e.Column, e.Err)
}

func (e *SyntaxError) Unwrap() error { return e.Err }

// unmarshal is json.Unmarshal into a struct of raw values, which fails only if
// the syntax is wrong or text is not an object.
func unmarshal(text []byte, to any) error {
	err := json.Unmarshal(text, to)
	offset := int64(len(text)) // of a text that ends too early
	var (
		se *json.SyntaxError
		te *json.UnmarshalTypeError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &te):
		return fmt.Errorf("the text is a JSON %s; want an object", te.Value)
	case errors.As(err, &se) && se.Offset > 0 && se.Offset <= offset && se.Error() != "unexpected end of JSON input":
		offset = se.Offset - 1 // Offset counts the offending byte
	}
	line, column := jsonerr.Position(text, int(offset))
	return &SyntaxError{line, column, err}
}

// field stores the value of a key in to, or leaves to unchanged if the key is
// absent.
func field(key string, text json.RawMessage, to any, want string) error {
	if absent(text) {
		return nil
	}
	if json.Unmarshal(text, to) != nil {
		return &ConfigError{key, string(text), want}
	}
	return nil
}

// absent reports whether a key has no value. Like encoding/json, and therefore
// flannel, it treats null as absent.
func absent(text json.RawMessage) bool {
	return len(text) == 0 || string(text) == "null"
}
