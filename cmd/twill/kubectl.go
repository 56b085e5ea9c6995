package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/remote"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/kube/layout"
)

// kubectl reads Kubernetes with the program of that name, for hosts without a twilld. It
// handles the certificates, proxies and exec commands of a kubeconfig; the code for them
// would be a third of this program.
type kubectl struct {
	layout.Source
	keys *layout.Keys
}

func newKubectl(s layout.Source) (*kubectl, error) {
	keys, err := layout.NewKeys(s.Prefix)
	return &kubectl{s, keys}, err
}

// Leases implements status.Store.
func (k *kubectl) Leases(ctx context.Context) ([]lease.Lease, error) {
	const op = "list nodes"
	out, err := k.run(ctx, op, "get", "nodes")
	if err != nil {
		return nil, err
	}
	nodes, err := k.keys.ReadNodes(out)
	if err != nil {
		return nil, &layout.Error{Op: op, Err: err}
	}
	t := layout.NewTable(k.keys, slog.New(slog.DiscardHandler))
	t.Replace(nodes)
	return t.Leases(), nil
}

// configMap is the ConfigMap in which flannel's manifests keep the network
// configuration.
const configMap = "kube-flannel-cfg"

// configNamespaces are the namespaces that may contain it, stock flannel's first.
var configNamespaces = []string{"kube-flannel", "kube-system"}

// PublishedText implements status.Store. If there is no file, as outside the
// cluster, it reads the ConfigMap behind the file.
func (k *kubectl) PublishedText(ctx context.Context) ([]byte, error) {
	text, missing := k.ReadConfig()
	if !errors.Is(missing, fs.ErrNotExist) {
		return text, missing
	}
	key := filepath.Base(cmp.Or(k.ConfigFile, layout.DefaultConfigFile))
	for _, namespace := range configNamespaces {
		op := "read ConfigMap " + namespace + "/" + configMap
		out, err := k.run(ctx, op, "get", "--ignore-not-found", "--namespace="+namespace, "configmaps", configMap)
		if err != nil {
			return nil, errors.Join(missing, err)
		}
		if len(out) == 0 {
			continue
		}
		var m struct{ Data map[string]string }
		if err := json.Unmarshal(out, &m); err != nil {
			return nil, &layout.Error{Op: op, Err: err}
		}
		if text, there := m.Data[key]; there {
			return []byte(text), nil
		}
		return nil, fmt.Errorf("%w: ConfigMap %s/%s has no key %s; add it", lease.ErrConfig, namespace, configMap, key)
	}
	return nil, missing
}

// pods returns the pods of flannel's DaemonSets by the addresses of their nodes.
func (k *kubectl) pods(ctx context.Context) (map[netip.Addr]remote.Pod, error) {
	const op = "list pods of the DaemonSet"
	out, err := k.run(ctx, op, "get", "pods", "--all-namespaces", "--selector=app=flannel", "--field-selector=status.phase=Running")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name, Namespace string }
			Status   struct {
				HostIPs []struct{ IP netip.Addr }
				HostIP  netip.Addr
			}
		}
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, &layout.Error{Op: op, Err: err}
	}
	pods := make(map[netip.Addr]remote.Pod)
	for _, i := range list.Items {
		p := remote.Pod{Namespace: i.Metadata.Namespace, Name: i.Metadata.Name}
		pods[i.Status.HostIP] = p
		for _, a := range i.Status.HostIPs {
			pods[a.IP] = p
		}
	}
	return pods, nil
}

// access returns the flags that locate the API.
func (k *kubectl) access() []string {
	var args []string
	switch {
	case k.Kubeconfig != "":
		args = append(args, "--kubeconfig="+k.Kubeconfig)
	case k.APIURL != "":
		args = append(args, "--kubeconfig="+os.DevNull) // no credentials, see layout.Source
	}
	if k.APIURL != "" {
		args = append(args, "--server="+k.APIURL)
	}
	return args
}

// run runs kubectl until ctx is done, and returns the JSON that it prints.
func (k *kubectl) run(ctx context.Context, op string, args ...string) ([]byte, error) {
	args = append(k.access(), args...)
	cmd := exec.CommandContext(ctx, "kubectl", append(args, "--output=json")...)
	cmd.WaitDelay = time.Second // for an exec command of the kubeconfig
	var out, complaints capped
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	switch {
	case err == nil:
		return out.text.Bytes(), nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, &layout.Error{Op: op, Err: errors.New("kubectl is not in PATH"),
			Remedy: "install kubectl, which twill uses to read from Kubernetes where no twilld answers, or run twill on a node"}
	case ctx.Err() != nil:
		return nil, &layout.Error{Op: op, Err: errors.New("kubectl did not answer in time"),
			Remedy: "check that the API server is running and reachable from here, or raise --timeout"}
	}
	return nil, &layout.Error{Op: op, Err: fmt.Errorf("kubectl: %s", cmp.Or(lastLine(complaints.text.String()), err.Error())),
		Remedy: "correct what this command reports: " + strings.Join(append([]string{"kubectl"}, args...), " ")}
}

// maxOutput bounds what is read of kubectl: 5,000 nodes with many images and labels take
// about 100 MB.
const maxOutput = 512 << 20

// capped is a text of at most maxOutput bytes.
type capped struct{ text bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	if c.text.Len()+len(p) > maxOutput {
		return 0, fmt.Errorf("more than %d MiB of output", maxOutput>>20)
	}
	return c.text.Write(p)
}

// lastLine returns the last line of a text: kubectl's log comes before its error.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return strings.TrimPrefix(text[strings.LastIndexByte(text, '\n')+1:], "error: ")
}
