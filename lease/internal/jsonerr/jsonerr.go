// Package jsonerr formats parts of a JSON text for error messages.
package jsonerr

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Position returns the line and the column of the byte at offset, both counted from 1
// as in an editor, columns in bytes. An offset past the end counts as the end.
func Position(text []byte, offset int) (line, column int) {
	text = text[:min(max(offset, 0), len(text))]
	return bytes.Count(text, []byte{'\n'}) + 1, len(text) - bytes.LastIndexByte(text, '\n')
}

// most is the number of bytes of a value shown in a message.
const most = 60

// Brief returns a value on one line, short enough for a message.
func Brief(value []byte) string {
	var b bytes.Buffer
	if json.Compact(&b, value) != nil {
		return Cut(string(value), most)
	}
	return Cut(b.String(), most)
}

// Cut shortens a text for a message to about the given number of bytes.
func Cut(text string, most int) string {
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
