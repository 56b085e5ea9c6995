package static

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/twillnet/twill/internal/atomicfile"
	"github.com/twillnet/twill/internal/spelling"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/internal/jsonerr"
)

// version is the content of one valid text of the file. It is immutable.
type version struct {
	text   string
	config *lease.Config
	leases []lease.Lease
}

// maxFile bounds the size of the file in bytes: 10,000 leases take about 1 MB.
const maxFile = 16 << 20

// readFile returns the text of the file.
func readFile(path string) (string, error) {
	text, err := atomicfile.Read(path, 0, maxFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("lease file %s: %w; create it, or name another with --lease-file", path, errors.Unwrap(err)) // the message without "open" and the path
	case errors.Is(err, atomicfile.ErrNotRegular), errors.Is(err, atomicfile.ErrTooLarge):
		return "", fmt.Errorf("lease file %s: %w; name another with --lease-file", path, errors.Unwrap(err))
	case err != nil:
		return "", fmt.Errorf("lease file: %w", err)
	}
	return string(text), nil
}

// parse reads a whole lease file. Its error is an *Error with all the faults.
func parse(path, text string) (*version, error) {
	if strings.TrimSpace(text) == "" {
		return nil, newError(path, Fault{Text: `the file is empty; want an object such as {"Network": "10.5.0.0/16", "Leases": [...]}`})
	}
	p := &parser{text: []byte(text)}
	config := p.parseConfig()
	if config != nil { // what follows needs valid JSON and networks
		p.parseLeases()
		p.checkSet(config)
	}
	if p.faults != nil {
		return nil, newError(path, p.faults...)
	}
	v := &version{text: text, config: config}
	for _, e := range p.entries {
		if e.lease.BackendType == "" {
			e.lease.BackendType = defaultType(config.Backend.Type)
		}
		if e.lease.BackendData == nil {
			e.lease.BackendData = defaultData
		}
		v.leases = append(v.leases, e.lease)
	}
	return v, nil
}

// defaultType returns the backend type of a lease that names none in a network of the
// given type. Nodes cannot announce theirs in a file, and all of them run twill,
// which has udp in addition to VXLAN.
func defaultType(network string) string {
	if network == "vxlan" {
		return "auto"
	}
	return network
}

// defaultData is the BackendData of a lease that has none: what twill announces by
// default in stores that it can write to.
var defaultData = json.RawMessage(`{"PartialChecksums":true}`)

// parser collects the content of a text and its faults.
type parser struct {
	text    []byte
	entries []entry
	faults  []Fault
}

// fault records a fault of the text at offset. JSON values among args are
// shortened.
func (p *parser) fault(offset int, format string, args ...any) {
	for i, a := range args {
		if v, ok := a.(json.RawMessage); ok {
			args[i] = jsonerr.Brief(v)
		}
	}
	line, _ := jsonerr.Position(p.text, offset)
	p.faults = append(p.faults, Fault{Line: line, Text: fmt.Sprintf(format, args...)})
}

// parseConfig returns nil if the text is not a JSON object or its config is invalid.
func (p *parser) parseConfig() *lease.Config {
	c, err := lease.ParseConfig(p.text)
	var (
		syntax *lease.SyntaxError
		config *lease.ConfigError
	)
	switch {
	case errors.As(err, &syntax):
		p.faults = append(p.faults, Fault{syntax.Line, syntax.Column, syntax.Err.Error()})
		return nil
	case errors.As(err, &config):
		p.checkKeys()
		if config.Value != "" || p.faults == nil { // not just misspelt
			p.fault(p.keyOffset(config.Key), "%v", config)
		}
		return nil
	case err != nil:
		p.faults = append(p.faults, Fault{Text: err.Error()})
		return nil
	}
	p.checkKeys()
	return c
}

// keyOffset returns where the value of a top-level key begins, 0 if the key is
// missing. A dot and a key inside that value may follow.
func (p *parser) keyOffset(key string) (offset int) {
	key, _, _ = strings.Cut(key, ".")
	for _, m := range members(p.text, 0) {
		if strings.EqualFold(m.key, key) {
			offset = m.offset // the last of duplicate keys counts
		}
	}
	return offset
}

// checkKeys looks for top-level keys that differ from a known one by a letter
// or two. Other unknown keys are ignored, as in flannel.
func (p *parser) checkKeys() {
	known := append(lease.ConfigKeys(), "Leases")
	for _, m := range members(p.text, 0) {
		if k, distance := spelling.Nearest(m.key, known); distance > 0 && distance <= 2 {
			p.fault(m.offset, "unknown key %q; did you mean %q?", m.key, k)
		}
	}
}

func (p *parser) parseLeases() {
	var all []member
	for _, m := range members(p.text, 0) {
		if strings.EqualFold(m.key, "Leases") {
			all = append(all, m)
		}
	}
	switch {
	case len(all) == 0 && p.faults == nil: // not just misspelt
		p.fault(0, `Leases is missing; want a list such as [{"Subnet": "10.5.1.0/24", "PublicIP": "192.0.2.1"}]`)
	case len(all) > 1:
		p.fault(all[1].offset, "Leases is set twice; put all leases into one list")
	case len(all) == 1 && all[0].value[0] != '[':
		p.fault(all[0].offset, "Leases %s: want a list such as [{…}, {…}]", all[0].value)
	case len(all) == 1:
		for i, e := range elements(all[0].value, all[0].offset) {
			p.parseEntry(i, e)
		}
	}
}

// checkSet checks all leases together.
func (p *parser) checkSet(c *lease.Config) {
	leases := make([]lease.Lease, len(p.entries))
	for i, e := range p.entries {
		leases[i] = e.lease
	}
	for _, err := range lease.Check(c, leases) {
		var (
			outside  *lease.OutsideError
			conflict *lease.ConflictError
		)
		switch {
		case errors.As(err, &outside):
			p.faultOutside(outside)
		case errors.As(err, &conflict):
			p.faultConflict(conflict)
		}
	}
}

func (p *parser) faultOutside(e *lease.OutsideError) {
	at := p.entries[e.Index].fields[e.Field]
	switch {
	case e.Network.IsValid():
		p.fault(at.offset, "Leases[%d].%s %s is outside the network %s", e.Index, e.Field, at.value, e.Network)
	case e.Field == "Subnet":
		p.fault(at.offset, `Leases[%d].Subnet is set, but "EnableIPv4" is false`, e.Index)
	default:
		p.fault(at.offset, `Leases[%d].IPv6Subnet is set; it needs "EnableIPv6": true and an "IPv6Network"`, e.Index)
	}
}

func (p *parser) faultConflict(e *lease.ConflictError) {
	a, b := p.entries[e.IndexA].fields[e.Field], p.entries[e.IndexB].fields[e.Field]
	verb := "overlaps"
	if strings.HasPrefix(e.Field, "PublicIP") {
		verb = "duplicates"
	}
	line, _ := jsonerr.Position(p.text, b.offset)
	p.fault(a.offset, "Leases[%d].%s %s %s Leases[%d].%s %s (line %d)",
		e.IndexA, e.Field, a.value, verb, e.IndexB, e.Field, b.value, line)
}
