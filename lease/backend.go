package lease

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// Backend is the "Backend" object of a network configuration: which backend
// carries the packets, and its options, which only the backend understands.
type Backend struct {
	Type string          // lower-case; "udp" if the configuration names none
	Raw  json.RawMessage // the whole object, compact; nil if there is none
}

// defaultBackend is the default of flannel's code. Its documentation says
// vxlan.
const defaultBackend = "udp"

func parseBackend(text json.RawMessage) (Backend, error) {
	if absent(text) {
		return Backend{Type: defaultBackend}, nil
	}
	const want = `an object such as {"Type": "udp"}`
	var o struct{ Type string }
	if err := field("Backend", text, &o, want); err != nil {
		return Backend{}, err
	}
	if o.Type == "" {
		return Backend{}, &ConfigError{"Backend", string(text), want + `, or no Backend at all for "udp"`}
	}
	var raw bytes.Buffer
	if err := json.Compact(&raw, text); err != nil {
		return Backend{}, err
	}
	return Backend{Type: strings.ToLower(o.Type), Raw: raw.Bytes()}, nil
}

// Decode stores the options in the struct that options points to, by flannel's
// rules: the case of a key does not matter, keys without a field are ignored,
// fields without a key keep their value, which is how a backend sets defaults.
// Its error wraps a *ConfigError that names the option if a value does not fit.
func (b Backend) Decode(options any) error {
	if b.Raw == nil {
		return nil
	}
	err := json.Unmarshal(b.Raw, options)
	var te *json.UnmarshalTypeError
	switch {
	case errors.As(err, &te):
		return fmt.Errorf("network config: %w", &ConfigError{"Backend." + te.Field, b.value(te.Field), wantOf(te.Type)})
	case err != nil:
		return fmt.Errorf("network config: Backend: %w", err)
	}
	return nil
}

// value returns the original text of an option.
func (b Backend) value(key string) string {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b.Raw, &all); err != nil {
		return "?"
	}
	for k, v := range all {
		if strings.EqualFold(k, key) {
			return string(v)
		}
	}
	return "?" // inside a nested object
}

// wantOf describes the JSON that fits a Go type.
func wantOf(t reflect.Type) string {
	switch k := t.Kind(); {
	case k == reflect.Bool:
		return "true or false"
	case k == reflect.String:
		return "a string"
	case k >= reflect.Uint8 && k <= reflect.Uint32:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<t.Bits()-1)
	case k == reflect.Uint || k == reflect.Uint64:
		return "a whole number, 0 or more"
	case k >= reflect.Int && k <= reflect.Int64:
		return "a whole number"
	case k == reflect.Struct || k == reflect.Map:
		return "an object"
	}
	return "JSON that fits " + t.String()
}
