package kube

import (
	"errors"
	"log/slog"

	"github.com/twillnet/twill/lease/kube/layout"
)

// Options hold the location of the API, the credentials, and the name of the
// node.
type Options struct {
	layout.Source

	// Node is the name of this node. If it is empty, the node of the pod
	// PodNamespace/PodName is used.
	Node, PodName, PodNamespace string

	// Condition enables setting the node's condition NetworkUnavailable to False
	// when Ready is called.
	Condition bool

	Logger *slog.Logger
}

// CheckNode returns an error if o names no node.
func (o *Options) CheckNode() error {
	if o.Node == "" && (o.PodName == "" || o.PodNamespace == "") {
		return errors.New("node name not set: set the environment variable NODE_NAME to the name of this node (in a pod: valueFrom.fieldRef.fieldPath spec.nodeName), or both POD_NAME and POD_NAMESPACE")
	}
	return nil
}
