//go:build !nokube

package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/twillnet/twill/lease"
)

// requestTimeout bounds one request; watches wait longer.
const requestTimeout = 5 * time.Second

// access creates the API client, and creates a new one when the credentials have
// changed.
type access struct {
	o Options

	mu     sync.Mutex
	client rest.Interface // nil if there is none yet
	made   []byte         // the text of the files that client was created from
	doubt  bool           // a request was refused: made may be out of date
}

// serviceAccountCA is the path in a pod of the CA certificate for the API
// server. The token beside it is reread by the client's transport.
const serviceAccountCA = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"

// get returns the client.
func (a *access) get() (rest.Interface, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil && !a.doubt {
		return a.client, nil
	}
	text, err := a.source()
	if err != nil {
		return nil, err
	}
	c, err := a.config(text)
	if err == nil {
		err = readCA(c)
	}
	if err != nil {
		return nil, a.invalid(err)
	}
	// The token too: the client caches a token from a file for a minute, even if it is refused.
	if made := slices.Concat(text, c.CAData, []byte(c.BearerToken)); a.client == nil || !bytes.Equal(made, a.made) {
		client, err := build(c)
		if err != nil {
			return nil, err
		}
		a.client, a.made = client, made
	}
	a.doubt = false
	return a.client, nil
}

// readCA replaces the name of the CA file in the configuration by its content: the
// client would read the file again only every few minutes.
func readCA(c *rest.Config) error {
	if len(c.CAData) > 0 || c.CAFile == "" {
		return nil
	}
	text, err := os.ReadFile(c.CAFile)
	if err != nil {
		return fmt.Errorf("read certificate authority: %w", err)
	}
	c.CAData, c.CAFile = text, ""
	return nil
}

// invalid returns the error for credentials that cannot be used.
func (a *access) invalid(err error) error {
	op, remedy := "use the pod's service account", outsidePod
	if a.o.Kubeconfig != "" {
		op, remedy = "use kubeconfig "+a.o.Kubeconfig, "correct the file, or name another with --kubeconfig-file"
	}
	return &Error{Op: op, Err: err, Kind: lease.ErrPending, Remedy: remedy}
}

// outsidePod is the remedy if the files of a pod's service account are missing.
const outsidePod = "outside a pod, name a kubeconfig with --kubeconfig-file"

// question makes the next get check whether the credentials were replaced.
func (a *access) question() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.doubt = true
}

// source returns the text of the file that holds the credentials, if any.
func (a *access) source() ([]byte, error) {
	path, remedy := a.o.Kubeconfig, "name another file with --kubeconfig-file"
	switch {
	case path == "" && a.o.APIURL != "":
		return nil, nil
	case path == "":
		path, remedy = serviceAccountCA, outsidePod+"; in a pod, check that automountServiceAccountToken is not false"
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, &Error{Op: "read credentials", Err: err, Kind: lease.ErrPending, Remedy: remedy}
	}
	return text, nil
}

// build creates a client.
func build(c *rest.Config) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register core/v1: %w", err)
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	c.GroupVersion, c.APIPath = &corev1.SchemeGroupVersion, "/api"
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.UserAgent = component
	r, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, &Error{Op: "create API client", Err: err, Kind: lease.ErrPending, Remedy: "correct --kube-api-url or --kubeconfig-file"}
	}
	return r, nil
}

// config returns the client's configuration, from the text of a kubeconfig if the
// options name one.
func (a *access) config(kubeconfig []byte) (*rest.Config, error) {
	switch {
	case a.o.Kubeconfig != "":
		parsed, err := clientcmd.Load(kubeconfig)
		if err != nil {
			return nil, err
		}
		// Paths in a kubeconfig are relative to the file.
		for _, c := range parsed.Clusters {
			c.LocationOfOrigin = a.o.Kubeconfig
		}
		for _, u := range parsed.AuthInfos {
			u.LocationOfOrigin = a.o.Kubeconfig
		}
		if err := clientcmd.ResolveLocalPaths(parsed); err != nil {
			return nil, err
		}
		if len(parsed.Clusters) == 0 && a.o.APIURL == "" {
			return nil, errors.New("clusters is empty; want one with the URL of the API server")
		}
		o := &clientcmd.ConfigOverrides{ClusterInfo: clientcmdapi.Cluster{Server: a.o.APIURL}}
		return clientcmd.NewNonInteractiveClientConfig(*parsed, "", o, nil).ClientConfig()
	case a.o.APIURL != "":
		return &rest.Config{Host: a.o.APIURL}, nil
	}
	return rest.InClusterConfig()
}

// try sends one request and records what its outcome shows about the API.
func (s *Store) try(ctx context.Context, op string, request func(context.Context, rest.Interface) error) error {
	c, err := s.access.get()
	if err == nil {
		attempt, cancel := context.WithTimeout(ctx, requestTimeout)
		err = request(attempt, c)
		cancel()
	}
	return s.outcome(ctx, op, err)
}
