package lease

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/twillnet/twill/lease/internal/jsonerr"
)

// SyntaxError says where a text stops being JSON.
type SyntaxError struct {
	Line, Column int // from 1, columns in bytes
	Err          error
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("line %d, column %d: %v", e.Line, e.Column, e.Err)
}

func (e *SyntaxError) Unwrap() error { return e.Err }

// unmarshal is json.Unmarshal into a struct of raw values: all that can be
// wrong is the syntax, or that text is not an object.
func unmarshal(text []byte, to any) error {
	err := json.Unmarshal(text, to)
	offset := int64(len(text)) // where the text ends too early
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

// field stores the value of a key in to and leaves to alone if there is none.
func field(key string, text json.RawMessage, to any, want string) error {
	if absent(text) {
		return nil
	}
	if json.Unmarshal(text, to) != nil {
		return &ConfigError{key, string(text), want}
	}
	return nil
}

// absent says whether a key has no value. Like encoding/json, and with it
// flannel, it takes null for none.
func absent(text json.RawMessage) bool {
	return len(text) == 0 || string(text) == "null"
}
