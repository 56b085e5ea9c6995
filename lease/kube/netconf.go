//go:build !nokube

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/internal/filewatch"
	"github.com/twillnet/twill/lease/internal/spelling"
)

// Config returns the network configuration in the file or, if that has become
// invalid, the last valid one.
func (s *Store) Config(context.Context) (*lease.Config, error) {
	c, err := s.readConfig()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.config = c
	} else if s.config == nil {
		return nil, err
	}
	return s.config, nil
}

// configMap is the ConfigMap in which flannel's manifests keep the network
// configuration.
const configMap = "kube-flannel-cfg"

// configNamespaces are the namespaces that may contain it, stock flannel's
// first.
var configNamespaces = []string{"kube-flannel", "kube-system"}

// PublishedText returns the text of the network configuration, valid or not. If
// there is no file, as outside the cluster, it requests the ConfigMap behind the
// file from the API.
func (s *Store) PublishedText(ctx context.Context) ([]byte, error) {
	text, missing := s.readText()
	if !errors.Is(missing, fs.ErrNotExist) {
		return text, missing
	}
	for _, namespace := range configNamespaces {
		var m corev1.ConfigMap
		err := s.try(ctx, "read ConfigMap "+namespace+"/"+configMap, func(ctx context.Context, c rest.Interface) error {
			return c.Get().Namespace(namespace).Resource("configmaps").Name(configMap).Do(ctx).Into(&m)
		})
		key := filepath.Base(s.path)
		switch text, there := m.Data[key]; {
		case there:
			return []byte(text), nil
		case err == nil:
			return nil, fmt.Errorf("%w: ConfigMap %s/%s has no key %s; add it", lease.ErrConfig, namespace, configMap, key)
		case !apierrors.IsNotFound(err):
			return nil, errors.Join(missing, err)
		}
	}
	return nil, missing
}

// Published returns the parsed result of PublishedText.
func (s *Store) Published(ctx context.Context) (*lease.Config, error) {
	text, err := s.PublishedText(ctx)
	if err != nil {
		return nil, err
	}
	return s.parse(text)
}

// WaitConfig returns the network configuration as soon as it is valid. Until
// then it calls note with the error, once for each version.
func (s *Store) WaitConfig(ctx context.Context, note func(error)) (*lease.Config, error) {
	w := s.configWatch()
	defer w.Close()
	for last := ""; ; {
		w.Arm()
		c, err := s.Config(ctx)
		if err == nil {
			return c, nil
		}
		if err.Error() != last {
			last = err.Error()
			note(err)
		}
		if err := w.Wait(ctx); err != nil {
			return nil, err
		}
	}
}

func (s *Store) configWatch() *filewatch.Notifier {
	return &filewatch.Notifier{Path: s.path, What: "network configuration", Log: s.log}
}

// maxConfig bounds what is read; a ConfigMap holds at most 1 MiB.
const maxConfig = 1 << 20

func (s *Store) readText() ([]byte, error) {
	// A device or a pipe in its place would block.
	info, err := os.Stat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w %s: %w; put the key %s into the ConfigMap that is mounted at %s, or name another file with --net-config-path",
			lease.ErrConfig, s.path, fs.ErrNotExist, filepath.Base(s.path), filepath.Dir(s.path))
	case err == nil && (!info.Mode().IsRegular() || info.Size() > maxConfig):
		return nil, fmt.Errorf("%w %s: not a file of at most %d bytes; name another with --net-config-path", lease.ErrConfig, s.path, maxConfig)
	}
	text, err := os.ReadFile(s.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; make it readable, or name another file with --net-config-path", lease.ErrConfig, err)
	}
	return text, nil
}

func (s *Store) readConfig() (*lease.Config, error) {
	text, err := s.readText()
	if err != nil {
		return nil, err
	}
	return s.parse(text)
}

func (s *Store) parse(text []byte) (*lease.Config, error) {
	c, err := lease.ParseAssigned(text)
	if near := misspelt(text); near != "" {
		return nil, fmt.Errorf("%w %s: %s; correct the key in the ConfigMap", lease.ErrConfig, s.path, near)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; correct it in the ConfigMap", s.path, err)
	}
	return c, nil
}

// misspelt describes unknown keys that differ from a known one by a letter or
// two. Other unknown keys are ignored, as in flannel.
func misspelt(text []byte) string {
	var members map[string]json.RawMessage
	if json.Unmarshal(text, &members) != nil {
		return ""
	}
	known := lease.ConfigKeys()
	var found []string
	for key := range members {
		if k, distance := spelling.Nearest(key, known); distance > 0 && distance <= 2 {
			found = append(found, fmt.Sprintf("unknown key %q; did you mean %q?", key, k))
		}
	}
	return strings.Join(found, "; ")
}
