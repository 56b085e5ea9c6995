package lease

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/twillnet/twill/internal/atomicfile"
)

// MaxSubnetEnv bounds the size of a subnet file in bytes; flannel writes about 200.
const MaxSubnetEnv = 64 << 10

// SubnetEnv is the content of subnet.env, from which the CNI plugin reads the node's
// parameters, and the daemon its previous state after a restart.
type SubnetEnv struct {
	Network, Subnet         netip.Prefix // Subnet is invalid if the node has no IPv4
	IPv6Network, IPv6Subnet netip.Prefix // the same for IPv6
	MTU                     int          // of the pods' interfaces, bytes
	IPMasq                  bool         // the daemon masquerades, so the plugin need not
}

// Text returns the content of the file as flannel writes it. Each subnet is written
// with the address of the pods' bridge, the first after the subnet's own.
func (e SubnetEnv) Text() []byte {
	var b []byte
	if e.Subnet.IsValid() {
		b = fmt.Appendf(b, "FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s\n", e.Network, gateway(e.Subnet))
	}
	if e.IPv6Subnet.IsValid() {
		b = fmt.Appendf(b, "FLANNEL_IPV6_NETWORK=%s\nFLANNEL_IPV6_SUBNET=%s\n", e.IPv6Network, gateway(e.IPv6Subnet))
	}
	return fmt.Appendf(b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", e.MTU, e.IPMasq)
}

func gateway(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
}

// Write replaces the file at path, mode 0644, and creates its directory if
// there is none. A reader sees either the old text or the new one, even after a
// crash.
func (e SubnetEnv) Write(path string) error {
	if err := e.write(path); err != nil {
		return fmt.Errorf("write subnet file: %w; name another with --subnet-file", err)
	}
	return nil
}

func (e SubnetEnv) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, e.Text(), 0o644)
}

// RemoveSubnetEnv removes the file at path, and the temporary file of a killed
// writer. A missing file is not an error.
func RemoveSubnetEnv(path string) error {
	var errs []error
	for _, p := range []string{path, atomicfile.Temp(path)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove subnet file: %w", err))
		}
	}
	return errors.Join(errs...)
}

// ReadSubnetEnv reads the file at path. Unknown variables are ignored. The
// error wraps fs.ErrNotExist if there is no file, as at the first start of a
// node.
func ReadSubnetEnv(path string) (SubnetEnv, error) {
	var e SubnetEnv
	if err := ReadVariables(path, e.set); err != nil {
		return SubnetEnv{}, err
	}
	return e, nil
}

// ReadVariables calls set for each NAME=VALUE line of the subnet file at path, in
// the file's order, without quotes and a leading "export". Comments, empty lines
// and lines without "=" are ignored. An error of set stops the reading and is
// returned with file, line and name. The error wraps fs.ErrNotExist if there is
// no file.
func ReadVariables(path string, set func(name, value string) error) error {
	text, err := atomicfile.Read(path, 0, MaxSubnetEnv)
	if err != nil {
		return fmt.Errorf("read subnet file: %w", err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if err := set(name, strings.Trim(value, `"'`)); err != nil {
			return fmt.Errorf("read subnet file: %s:%d: %s: %w", path, n, name, err)
		}
	}
	return nil
}

func (e *SubnetEnv) set(key, value string) (err error) {
	switch key {
	case "FLANNEL_NETWORK":
		e.Network, err = firstPrefix(value)
	case "FLANNEL_SUBNET":
		e.Subnet, err = netip.ParsePrefix(value)
		e.Subnet = e.Subnet.Masked()
	case "FLANNEL_IPV6_NETWORK":
		e.IPv6Network, err = firstPrefix(value)
	case "FLANNEL_IPV6_SUBNET":
		e.IPv6Subnet, err = netip.ParsePrefix(value)
		e.IPv6Subnet = e.IPv6Subnet.Masked()
	case "FLANNEL_MTU":
		e.MTU, err = strconv.Atoi(value)
	case "FLANNEL_IPMASQ":
		e.IPMasq, err = strconv.ParseBool(value)
	}
	return err
}

// firstPrefix returns the first prefix of a list; flannel writes a list if the
// cluster has several networks.
func firstPrefix(list string) (netip.Prefix, error) {
	first, _, _ := strings.Cut(list, ",")
	return netip.ParsePrefix(first)
}

// Previous returns the subnets that the node had, for Store.Acquire.
func (e SubnetEnv) Previous() Previous {
	return Previous{Subnet: e.Subnet, IPv6Subnet: e.IPv6Subnet}
}
