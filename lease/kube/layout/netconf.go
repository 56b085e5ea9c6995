package layout

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/twillnet/twill/internal/atomicfile"
	"github.com/twillnet/twill/internal/spelling"
	"github.com/twillnet/twill/lease"
)

// configFile returns the path of the file with the network configuration.
func (s *Source) configFile() string { return cmp.Or(s.ConfigFile, DefaultConfigFile) }

// maxConfig bounds what is read; a ConfigMap holds at most 1 MiB.
const maxConfig = 1 << 20

// ReadConfig returns the text of the file with the network configuration, valid or
// not. The error wraps fs.ErrNotExist if there is no file.
func (s *Source) ReadConfig() ([]byte, error) {
	text, err := atomicfile.Read(s.configFile(), 0, maxConfig)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w %s: %w; put the key %s into the ConfigMap that is mounted at %s, or name another file with --net-config-path",
			lease.ErrConfig, s.configFile(), fs.ErrNotExist, filepath.Base(s.configFile()), filepath.Dir(s.configFile()))
	case errors.Is(err, atomicfile.ErrNotRegular), errors.Is(err, atomicfile.ErrTooLarge):
		return nil, fmt.Errorf("%w %s: not a regular file of at most %d bytes; name another with --net-config-path", lease.ErrConfig, s.configFile(), maxConfig)
	case err != nil:
		return nil, fmt.Errorf("%w: %w; make it readable, or name another file with --net-config-path", lease.ErrConfig, err)
	}
	return text, nil
}

// ParseConfig reads the text of the network configuration.
func (s *Source) ParseConfig(text []byte) (*lease.Config, error) {
	c, err := lease.ParseAssigned(text)
	if near := misspelt(text); near != "" {
		return nil, fmt.Errorf("%w %s: %s; correct the key in the ConfigMap", lease.ErrConfig, s.configFile(), near)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; correct it in the ConfigMap", s.configFile(), err)
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
