// Package position turns offsets in a text into what an editor shows.
package position

import "bytes"

// At returns the line and the column of the byte at offset, both counted from
// 1, columns in bytes. An offset past the end is the end.
func At(text []byte, offset int) (line, column int) {
	text = text[:min(max(offset, 0), len(text))]
	return bytes.Count(text, []byte{'\n'}) + 1, len(text) - bytes.LastIndexByte(text, '\n')
}
