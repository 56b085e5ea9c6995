package kube

import (
	"fmt"
	"log/slog"
	"regexp"
	"strings"
)

// Flannel's defaults.
const (
	DefaultPrefix     = "flannel.alpha.coreos.com"
	DefaultConfigFile = "/etc/kube-flannel/net-conf.json"
)

// Options hold the location of the API, the credentials, and the name of the
// node.
type Options struct {
	// APIURL and Kubeconfig choose the API server and the credentials. With
	// neither, those of the pod that this process runs in are used. A kubeconfig
	// provides both by its current context; APIURL then replaces only the server.
	// With APIURL alone there are no credentials.
	APIURL, Kubeconfig string

	// Node is the name of this node. If it is empty, the node of the pod
	// PodNamespace/PodName is used.
	Node, PodName, PodNamespace string

	// Prefix is the prefix of the annotations; empty means DefaultPrefix.
	Prefix string
	// ConfigFile holds the network configuration; empty means DefaultConfigFile.
	ConfigFile string
	// Condition enables setting the node's condition NetworkUnavailable to False
	// when Ready is called.
	Condition bool

	Logger *slog.Logger
}

// Check finds errors that do not depend on the cluster.
func (o *Options) Check() error {
	_, err := newKeys(o.Prefix)
	return err
}

// CheckNode returns an error if o names no node.
func (o *Options) CheckNode() error {
	if o.Node == "" && (o.PodName == "" || o.PodNamespace == "") {
		return fmt.Errorf("NODE_NAME is not set, and POD_NAME and POD_NAMESPACE are not both: set NODE_NAME to the name of this node (in a pod: valueFrom.fieldRef.fieldPath spec.nodeName)")
	}
	return nil
}

// validPrefix is flannel's rule: a domain of two labels or more, a slash, and
// optionally the beginning of a name.
var validPrefix = regexp.MustCompile(`^(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?$`)

// newKeys returns the annotations' names under prefix, to which flannel appends
// a slash, or a hyphen if it already has text after a slash.
func newKeys(prefix string) (keys, error) {
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
		return keys{}, fmt.Errorf("annotation prefix %q: want a domain in lower case such as %q, and at most one slash with the beginning of a name behind it", prefix, DefaultPrefix)
	}
	return keys{
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

// keys holds the names of the annotations.
type keys struct {
	// Written by the node itself, as by stock flannel.
	managed, kind, data, v6Data, public, publicV6 string
	// extras is specific to twill; stock flannel ignores it.
	extras string
	// Written by users.
	overwrite, overwriteV6, node, nodeV6 string
}

// all returns every name.
func (k *keys) all() []string {
	return []string{
		k.managed, k.kind, k.data, k.v6Data, k.public, k.publicV6, k.extras,
		k.overwrite, k.overwriteV6, k.node, k.nodeV6,
	}
}
