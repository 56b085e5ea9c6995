package static

import (
	"bytes"
	"encoding/json"
)

// member is a value in a JSON text and its position.
type member struct {
	key    string // empty in a list
	value  json.RawMessage
	offset int
}

// members returns the keys and values of a JSON object that begins at offset
// base of the whole text. The text is known to be valid JSON.
func members(object []byte, base int) []member { return walk(object, base, true) }

// elements is like members, for the values of a JSON list.
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
