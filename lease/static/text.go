package static

import (
	"bytes"
	"encoding/json"
	"strings"
)

// member is a value in a JSON text and where it begins.
type member struct {
	key    string // empty in a list
	value  json.RawMessage
	offset int
}

// members returns the keys and values of a JSON object that begins at offset
// base of the whole text. The text is known to be valid JSON.
func members(object []byte, base int) []member { return walk(object, base, true) }

// elements returns the values of a JSON list, as members does of an object.
func elements(list []byte, base int) []member { return walk(list, base, false) }

func walk(text []byte, base int, keys bool) []member {
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		return nil
	}
	var ms []member
	for d.More() {
		var m member
		if keys {
			t, err := d.Token()
			if err != nil {
				return ms
			}
			m.key, _ = t.(string)
		}
		if d.Decode(&m.value) != nil {
			return ms
		}
		m.offset = base + int(d.InputOffset()) - len(m.value)
		ms = append(ms, m)
	}
	return ms
}

// nearest returns the known key that key is meant to be, and how many letters
// must change for that: 0 if only the case differs.
func nearest(key string, known []string) (best string, distance int) {
	distance = -1
	for _, k := range known {
		if d := edits(strings.ToLower(key), strings.ToLower(k)); distance < 0 || d < distance {
			best, distance = k, d
		}
	}
	return best, distance
}

// edits is the Levenshtein distance, in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
