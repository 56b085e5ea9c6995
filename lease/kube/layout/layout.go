// Package layout defines how stock flannel stores a network in Kubernetes:
//
//	spec.podCIDRs        the subnets of a node, which the cluster assigns
//	metadata.annotations what the node announces: its address, backend and data
//	net-conf.json        the network configuration, a file on each node
//
// It imports no package of Kubernetes, which would make the operator's program half
// as large again.
package layout

import "fmt"

// Flannel's defaults.
const (
	DefaultPrefix     = "flannel.alpha.coreos.com"
	DefaultConfigFile = "/etc/kube-flannel/net-conf.json"
)

// Source locates the API and the network configuration, and names the annotations.
type Source struct {
	// APIURL and Kubeconfig choose the API server and the credentials. With
	// neither, those of the pod that this process runs in are used. A kubeconfig
	// provides both by its current context; APIURL then replaces only the server.
	// With APIURL alone there are no credentials.
	APIURL, Kubeconfig string

	// Prefix is the prefix of the annotations; empty means DefaultPrefix.
	Prefix string
	// ConfigFile holds the network configuration; empty means DefaultConfigFile.
	ConfigFile string
}

// Check finds errors that do not depend on the cluster.
func (s *Source) Check() error {
	_, err := NewKeys(s.Prefix)
	return err
}

// Error reports which operation on Kubernetes failed, and what to do about it.
// It never holds a token.
type Error struct {
	Op     string // "read node n1"
	Err    error
	Remedy string // empty if Err includes it
	Kind   error  // lease.ErrPending, lease.ErrDenied or lease.ErrLost; nil if none applies
}

func (e *Error) Error() string {
	text, remedy := e.Explain()
	if remedy != "" {
		text += "; " + remedy
	}
	return text
}

// Explain returns the text without the remedy, and the remedy.
func (e *Error) Explain() (cause, remedy string) {
	return fmt.Sprintf("Kubernetes: %s: %v", e.Op, e.Err), e.Remedy
}

// Unwrap returns the cause and the kind of the error.
func (e *Error) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Err}
	}
	return []error{e.Kind, e.Err}
}
