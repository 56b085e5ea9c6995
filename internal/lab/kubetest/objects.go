package kubetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// Node is the part of a Node object that tests inspect.
type Node struct {
	Metadata struct {
		Name        string            `json:"name"`
		UID         string            `json:"uid"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR  string   `json:"podCIDR"`
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Conditions []Condition `json:"conditions"`
	} `json:"status"`
}

// Condition is a condition of a Node.
type Condition struct {
	Type, Status, Reason, Message string
	LastHeartbeatTime             time.Time
}

// Condition returns the condition of a type, or the zero value if there is none.
func (n *Node) Condition(kind string) Condition {
	for _, c := range n.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return Condition{}
}

// ask sends a request as the administrator.
func (c *Cluster) ask(method, path, contentType string, body []byte) (code int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	req.Header.Set("Content-Type", contentType)
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// Do sends a request and fails the test if the API refuses it. body is encoded
// as JSON; answer may be nil.
func (c *Cluster) Do(method, path string, body, answer any) {
	c.t.Helper()
	testkit.Must(c.t, c.Try(method, path, body, answer))
}

// Try is Do for any goroutine: it returns an error if the API refuses the request.
func (c *Cluster) Try(method, path string, body, answer any) error {
	contentType := "application/json"
	if method == http.MethodPatch {
		contentType = "application/merge-patch+json"
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	code, got, err := c.ask(method, path, contentType, text)
	if err != nil || code >= 300 {
		return fmt.Errorf("%s %s: %d %s, %w", method, path, code, got, err)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(got, answer)
}

const nodesPath = "/api/v1/nodes"

// AddNode creates a node with podCIDRs; without any, they are left to the controller.
func (c *Cluster) AddNode(name string, podCIDRs ...string) {
	c.t.Helper()
	c.AddAnnotatedNode(name, nil, podCIDRs...)
}

// AddAnnotatedNode is AddNode with annotations.
func (c *Cluster) AddAnnotatedNode(name string, annotations map[string]string, podCIDRs ...string) {
	c.t.Helper()
	testkit.Must(c.t, c.TryAddNode(name, annotations, nil, podCIDRs...))
}

// TryAddNode creates a node with annotations and a status, from any goroutine.
func (c *Cluster) TryAddNode(name string, annotations map[string]string, status map[string]any, podCIDRs ...string) error {
	spec := map[string]any{}
	if len(podCIDRs) > 0 {
		spec["podCIDR"], spec["podCIDRs"] = podCIDRs[0], podCIDRs
	}
	return c.Try(http.MethodPost, nodesPath, map[string]any{
		"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{"name": name, "annotations": annotations}, "spec": spec, "status": status,
	}, nil)
}

// DeleteNode deletes a node.
func (c *Cluster) DeleteNode(name string) {
	c.t.Helper()
	c.Do(http.MethodDelete, nodesPath+"/"+name, nil, nil)
}

// Node returns a node.
func (c *Cluster) Node(name string) *Node {
	c.t.Helper()
	var n Node
	c.Do(http.MethodGet, nodesPath+"/"+name, nil, &n)
	return &n
}

// Annotate sets annotations of a node; nil removes one.
func (c *Cluster) Annotate(name string, annotations map[string]any) {
	c.t.Helper()
	c.PatchNode(name, map[string]any{"metadata": map[string]any{"annotations": annotations}})
}

// TryAnnotate is Annotate for any goroutine.
func (c *Cluster) TryAnnotate(name string, annotations map[string]any) error {
	return c.Try(http.MethodPatch, nodesPath+"/"+name, map[string]any{"metadata": map[string]any{"annotations": annotations}}, nil)
}

// PatchNode merges p into a node.
func (c *Cluster) PatchNode(name string, p any) {
	c.t.Helper()
	c.Do(http.MethodPatch, nodesPath+"/"+name, p, nil)
}

// SetCondition sets a condition of a node, like a controller of the cluster.
func (c *Cluster) SetCondition(name, kind, status, reason string) {
	c.t.Helper()
	c.Do(http.MethodPatch, nodesPath+"/"+name+"/status", map[string]any{"status": map[string]any{"conditions": []any{
		map[string]any{"type": kind, "status": status, "reason": reason, "message": reason},
	}}}, nil)
}

// Event is the part of an Event that tests inspect.
type Event struct {
	Type, Reason, Message         string
	Count                         int
	FirstTimestamp, LastTimestamp time.Time
	Source                        struct{ Component, Host string }
}

const eventsPath = "/api/v1/namespaces/default/events"

// Events returns the Events of a node that "kubectl describe node" shows.
func (c *Cluster) Events(node string) []Event {
	c.t.Helper()
	var l struct{ Items []Event }
	c.Do(http.MethodGet, eventsPath+"?fieldSelector=involvedObject.kind=Node,involvedObject.uid="+node, nil, &l)
	return l.Items
}

// DeleteEvents deletes all Events.
func (c *Cluster) DeleteEvents() {
	c.t.Helper()
	c.Do(http.MethodDelete, eventsPath, nil, nil)
}

const rbacPath = "/apis/rbac.authorization.k8s.io/v1"

// rights returns the rules of the ClusterRole in flannel's manifest, without one verb on
// one resource.
func rights(resource, verb string) []any {
	var rules []any
	for _, r := range []struct {
		resource string
		verbs    []string
	}{{"pods", []string{"get"}}, {"nodes", []string{"get", "list", "watch"}}, {"nodes/status", []string{"patch"}}, {"events", []string{"create", "patch"}}} {
		if r.resource == resource {
			r.verbs = slices.DeleteFunc(r.verbs, func(v string) bool { return v == verb })
		}
		if len(r.verbs) > 0 {
			rules = append(rules, map[string]any{"apiGroups": []string{""}, "resources": []string{r.resource}, "verbs": r.verbs})
		}
	}
	return rules
}

// grantRights creates the ClusterRole from flannel's manifest.
func (c *Cluster) grantRights() {
	c.t.Helper()
	c.Do(http.MethodPost, rbacPath+"/clusterroles", map[string]any{
		"metadata": map[string]any{"name": "flannel"}, "rules": rights("", ""),
	}, nil)
}

// Withhold removes one verb on one resource, such as "nodes/status", from flannel's rights
// until restore is called. Both return once the API server applies the change.
func (c *Cluster) Withhold(resource, verb string) (restore func()) {
	c.t.Helper()
	c.setRights(rights(resource, verb), resource, verb, false)
	return func() { c.setRights(rights("", ""), resource, verb, true) }
}

// setRights replaces the rules of the ClusterRole, and waits until they are in force
// for a verb.
func (c *Cluster) setRights(rules []any, resource, verb string, want bool) {
	c.t.Helper()
	c.Do(http.MethodPatch, rbacPath+"/clusterroles/flannel", map[string]any{"rules": rules}, nil)
	resource, sub, _ := strings.Cut(resource, "/")
	testkit.Eventually(c.t, "the API server knows the rights", func() bool {
		var review struct{ Status struct{ Allowed bool } }
		c.Do(http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", map[string]any{"spec": map[string]any{
			"user": FlannelToken, "resourceAttributes": map[string]any{"resource": resource, "subresource": sub, "verb": verb, "namespace": "default"},
		}}, &review)
		return review.Status.Allowed == want
	})
}

// Grant gives flannel's rights to the user of FlannelToken and to the service
// account default/flannel.
func (c *Cluster) Grant() {
	c.t.Helper()
	c.Do(http.MethodPost, rbacPath+"/clusterrolebindings", map[string]any{
		"metadata": map[string]any{"name": "flannel"},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel"},
		"subjects": []any{
			map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "flannel"},
			map[string]any{"kind": "ServiceAccount", "namespace": "default", "name": "flannel"},
		},
	}, nil)
}

// Revoke undoes Grant.
func (c *Cluster) Revoke() {
	c.t.Helper()
	c.Do(http.MethodDelete, rbacPath+"/clusterrolebindings/flannel", nil, nil)
}

// ServiceAccountToken returns a token of the service account default/flannel, which
// it creates if necessary. The token is bound to a secret of that name and is valid as
// long as the secret exists.
func (c *Cluster) ServiceAccountToken(secret string) string {
	c.t.Helper()
	const accounts = "/api/v1/namespaces/default/serviceaccounts"
	code, answer, err := c.ask(http.MethodPost, accounts, "application/json", []byte(`{"metadata":{"name":"flannel"}}`))
	if err != nil || code >= 300 && code != http.StatusConflict {
		c.t.Fatalf("create service account: %d %s, %v", code, answer, err)
	}
	c.Do(http.MethodPost, "/api/v1/namespaces/default/secrets", map[string]any{"metadata": map[string]any{"name": secret}}, nil)
	var out struct {
		Status struct{ Token string } `json:"status"`
	}
	c.Do(http.MethodPost, accounts+"/flannel/token", map[string]any{"spec": map[string]any{
		"boundObjectRef": map[string]any{"apiVersion": "v1", "kind": "Secret", "name": secret},
	}}, &out)
	if out.Status.Token == "" {
		c.t.Fatal("the API server returned an empty token")
	}
	return out.Status.Token
}

// DeleteSecret deletes a secret, and with it the token bound to it.
func (c *Cluster) DeleteSecret(name string) {
	c.t.Helper()
	c.Do(http.MethodDelete, "/api/v1/namespaces/default/secrets/"+name, nil, nil)
}

// AddPod creates a pod that is bound to a node.
func (c *Cluster) AddPod(name, node string) {
	c.t.Helper()
	c.Do(http.MethodPost, "/api/v1/namespaces/default/pods", map[string]any{
		"metadata": map[string]any{"name": name},
		"spec":     map[string]any{"nodeName": node, "containers": []any{map[string]any{"name": "c", "image": "none"}}},
	}, nil)
}

// OurAnnotations returns a node's annotations under a prefix, with the prefix removed.
func (n *Node) OurAnnotations(prefix string) map[string]string {
	m := map[string]string{}
	for k, v := range n.Metadata.Annotations {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			m[name] = v
		}
	}
	return m
}

// String returns the node's name for messages.
func (n *Node) String() string {
	return fmt.Sprintf("%s %v %v", n.Metadata.Name, n.Spec.PodCIDRs, n.Metadata.Annotations)
}

// ResourceVersion returns the version of a node's object, which changes with each write.
func (c *Cluster) ResourceVersion(name string) string {
	c.t.Helper()
	var n struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	c.Do(http.MethodGet, nodesPath+"/"+name, nil, &n)
	return n.Metadata.ResourceVersion
}
