// Package remote runs twill on other nodes, by a command of the operator's such as ssh
// or kubectl exec. There is no shell in between on this host, and nothing on the other
// than twill itself.
package remote

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Node is a node on which twill is to run.
type Node struct {
	Addr netip.Addr // its public address
	Pod  Pod        // of its twilld in Kubernetes; zero if it is not needed
}

// Pod is a pod in Kubernetes.
type Pod struct{ Namespace, Name string }

// Via is a command by which twill runs on a node: its words, with placeholders for what
// differs between nodes.
type Via struct {
	words []string
	short bool // the words are those of Kubectl
}

// Placeholders of the words.
const (
	node      = "{node}"
	pod       = "{pod}"
	namespace = "{namespace}"
)

// Kubectl is the command for which "kubectl" is short. The image's only container with
// twill is named as in flannel's manifest.
const Kubectl = "kubectl exec -i --namespace={namespace} {pod} --container=kube-flannel -- twill"

// Parse reads a command. Its words are separated by spaces; quotes keep them together as
// in a shell, and nothing else is special. "kubectl" stands for [Kubectl].
func Parse(text string) (Via, error) {
	short := strings.TrimSpace(text) == "kubectl"
	if short {
		text = Kubectl
	}
	words, err := split(text)
	if err != nil {
		return Via{}, err
	}
	v := Via{words, short}
	switch {
	case len(words) == 0:
		return v, errors.New("the command is empty")
	case !v.has(node) && !v.has(pod):
		return v, fmt.Errorf("%q has neither %s nor %s, so it would run on one host for all nodes", text, node, pod)
	}
	return v, nil
}

// split splits text into words.
func split(text string) (words []string, err error) {
	var word strings.Builder
	var quote rune
	in := false
	for _, c := range text {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, in = c, true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n'):
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("%q has a quote %c without an end", text, quote)
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

func (v Via) has(placeholder string) bool {
	return strings.Contains(strings.Join(v.words, " "), placeholder)
}

// NeedsPods reports whether the command names the pods of the nodes.
func (v Via) NeedsPods() bool { return v.has(pod) || v.has(namespace) }

// InCluster returns the command with flags by which kubectl finds a cluster, if it is the
// one for which "kubectl" is short. Others say by themselves where they lead.
func (v Via) InCluster(access []string) Via {
	if v.short {
		v.words = slices.Insert(slices.Clone(v.words), 1, access...)
	}
	return v
}

// IsSet reports whether there is a command at all.
func (v Via) IsSet() bool { return len(v.words) > 0 }

// killDelay is how long a command may take to end after its context has.
const killDelay = 2 * time.Second

// Command returns the command that runs twill with args on a node until ctx is done.
func (v Via) Command(ctx context.Context, n Node, args ...string) (*exec.Cmd, error) {
	if v.NeedsPods() && n.Pod.Name == "" {
		return nil, fmt.Errorf("there is no pod of a DaemonSet with the label app=flannel on %s", n.Addr)
	}
	fill := strings.NewReplacer(node, n.Addr.String(), pod, n.Pod.Name, namespace, n.Pod.Namespace)
	words := make([]string, 0, len(v.words)+len(args))
	for _, w := range v.words {
		words = append(words, fill.Replace(w))
	}
	words = append(words, args...)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.WaitDelay = killDelay
	return cmd, nil
}

// maxComplaints bounds what is kept of a command's standard error.
const maxComplaints = 4096

// Complaints keep the last of what a command writes to standard error.
type Complaints struct{ text []byte }

// Write implements io.Writer.
func (c *Complaints) Write(p []byte) (int, error) {
	c.text = append(c.text, p...)
	if more := len(c.text) - maxComplaints; more > 0 {
		c.text = append(c.text[:0], c.text[more:]...)
	}
	return len(p), nil
}

// Explain adds the last line to the error with which the command ended.
func (c *Complaints) Explain(err error) error {
	text := strings.TrimSpace(string(c.text))
	if text = text[strings.LastIndexByte(text, '\n')+1:]; err == nil || text == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, text)
}
