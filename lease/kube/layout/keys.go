package layout

import (
	"fmt"
	"regexp"
	"strings"
)

// validPrefix is flannel's rule: a domain of two labels or more, a slash, and
// optionally the beginning of a name.
var validPrefix = regexp.MustCompile(`^(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?$`)

// NewKeys returns the annotations' names under prefix. Like flannel, it appends a slash
// to the prefix, or a hyphen if the prefix already has text after a slash. An empty
// prefix means DefaultPrefix.
func NewKeys(prefix string) (*Keys, error) {
	if prefix == "" {
		prefix = DefaultPrefix
	}
	full := prefix
	if !strings.Contains(full, "/") {
		full += "/"
	}
	if !strings.HasSuffix(full, "/") && !strings.HasSuffix(full, "-") {
		full += "-"
	}
	if !validPrefix.MatchString(full) {
		return nil, fmt.Errorf("annotation prefix %q: want a lower-case domain such as %q, optionally followed by a slash and the beginning of a name", prefix, DefaultPrefix)
	}
	return &Keys{
		managed:  full + "kube-subnet-manager",
		kind:     full + "backend-type",
		data:     full + "backend-data",
		v6Data:   full + "backend-v6-data",
		public:   full + "public-ip",
		publicV6: full + "public-ipv6",
		extras:   full + "twill",

		overwrite:   full + "public-ip-overwrite",
		overwriteV6: full + "public-ipv6-overwrite",
		node:        full + "node-public-ip",
		nodeV6:      full + "node-public-ipv6",
	}, nil
}

// Keys holds the names of the annotations. It is immutable, and safe for concurrent
// use.
type Keys struct {
	// Written by the node itself, as by stock flannel.
	managed, kind, data, v6Data, public, publicV6 string
	// extras is specific to twill; stock flannel ignores it.
	extras string
	// Written by users.
	overwrite, overwriteV6, node, nodeV6 string
}

// all returns every name.
func (k *Keys) all() []string {
	return []string{
		k.managed, k.kind, k.data, k.v6Data, k.public, k.publicV6, k.extras,
		k.overwrite, k.overwriteV6, k.node, k.nodeV6,
	}
}
