package layout

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// extras is the annotation for data that twill announces beyond stock flannel.
// Stock flannel extracts its MAC address from backend-data as text, so further
// keys there would break it.
type extras struct {
	BackendData   map[string]json.RawMessage `json:",omitempty"`
	BackendV6Data map[string]json.RawMessage `json:",omitempty"`
	// Since is when this was first announced. A stock flannel that takes over the
	// node leaves the annotation unchanged, but sets the node's condition when it
	// starts; an annotation older than that no longer counts.
	Since time.Time
}

// stockKeys are the keys of backend data that stock flannel has, in its order.
var stockKeys = []string{"VNI", "VtepMAC"}

// extrasOf returns a node's extras that are still in force.
func (k *Keys) extrasOf(e *Node) (extras, error) {
	text := e.Annotations[k.extras]
	if text == "" {
		return extras{}, nil
	}
	var x extras
	if err := json.Unmarshal([]byte(text), &x); err != nil {
		return extras{}, fmt.Errorf("annotation %s: %q is not the JSON that twilld writes", k.extras, brief(text))
	}
	if e.Up.After(x.Since) {
		return extras{}, nil
	}
	return x, nil
}

// Since returns the time from which a node's extras count; the zero time if it has none
// that are in force.
func (k *Keys) Since(e *Node) time.Time {
	x, err := k.extrasOf(e)
	if err != nil {
		return time.Time{}
	}
	return x.Since
}

// split divides backend data into the part that stock flannel writes, byte for
// byte, and the rest. Data that is not an object is not split.
func split(data json.RawMessage) (stock string, rest map[string]json.RawMessage) {
	if len(data) == 0 {
		return noData, nil
	}
	if json.Unmarshal(data, &rest) != nil {
		return string(data), nil
	}
	var members []string
	for _, key := range stockKeys {
		if value, ok := rest[key]; ok {
			members = append(members, quoted(key)+":"+string(value))
			delete(rest, key)
		}
	}
	if members == nil {
		return noData, rest
	}
	return "{" + strings.Join(members, ",") + "}", rest
}

// merge is the inverse of split. Stock flannel's keys are taken from its data
// only.
func merge(stock json.RawMessage, rest map[string]json.RawMessage) json.RawMessage {
	if len(rest) == 0 {
		return stock
	}
	var all map[string]json.RawMessage
	if len(stock) > 0 && json.Unmarshal(stock, &all) != nil {
		return stock
	}
	var members []string
	for _, key := range stockKeys {
		if value, ok := all[key]; ok {
			members = append(members, quoted(key)+":"+string(value))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(rest)) {
		if !slices.Contains(stockKeys, key) {
			members = append(members, quoted(key)+":"+string(rest[key]))
		}
	}
	if members == nil {
		return nil
	}
	return json.RawMessage("{" + strings.Join(members, ",") + "}")
}

// quoted returns s as a JSON string.
func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // cannot happen for a string
	}
	return string(b)
}
