// Package jsonerr puts pieces of a JSON text into error messages.
package jsonerr

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Position returns the line and the column of the byte at offset, as an editor
// shows them: from 1, columns in bytes. An offset past the end is the end.
func Position(text []byte, offset int) (line, column int) {
	text = text[:min(max(offset, 0), len(text))]
	return bytes.Count(text, []byte{'\n'}) + 1, len(text) - bytes.LastIndexByte(text, '\n')
}

// Brief returns a value on one line that fits into a message.
func Brief(value []byte) string {
	const most = 60
	var b bytes.Buffer
	if json.Compact(&b, value) != nil {
		return string(value)
	}
	if b.Len() > most {
		return strings.ToValidUTF8(b.String()[:most], "") + "…"
	}
	return b.String()
}
