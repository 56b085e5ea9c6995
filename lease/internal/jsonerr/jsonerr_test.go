package jsonerr

import (
	"strings"
	"testing"
)

func TestPosition(t *testing.T) {
	text := []byte("{\n  \"a\": 1\n}\n")
	for _, tt := range []struct{ offset, line, column int }{
		{-1, 1, 1}, {0, 1, 1}, {1, 1, 2}, {2, 2, 1}, {4, 2, 3}, {11, 3, 1}, {13, 4, 1}, {99, 4, 1},
	} {
		if l, c := Position(text, tt.offset); l != tt.line || c != tt.column {
			t.Errorf("offset %d: got %d:%d, want %d:%d", tt.offset, l, c, tt.line, tt.column)
		}
	}
}

func TestBrief(t *testing.T) {
	for value, want := range map[string]string{
		"{ \"a\":\n 1 }":                    `{"a":1}`,
		`"` + strings.Repeat("x", 58) + `"`: `"` + strings.Repeat("x", 58) + `"`,
		`"` + strings.Repeat("x", 59) + `"`: `"` + strings.Repeat("x", 59) + "…",
		`"` + strings.Repeat("é", 40) + `"`: `"` + strings.Repeat("é", 29) + "…", // no half letter
		`not JSON`:                          `not JSON`,
	} {
		if got := Brief([]byte(value)); got != want {
			t.Errorf("%s: got %s, want %s", value, got, want)
		}
	}
}
