package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/twillnet/twill/internal/lab/netlab"
)

const (
	// labDir holds the state of the persistent lab.
	labDir = "/run/twill-lab"
	// labPrefix is the prefix of the names of its namespaces.
	labPrefix = "twill-"
	// labHealthz is where each twilld of the lab serves its metrics, inside
	// its host.
	labHealthz = "127.0.0.1:8081"
)

// labNames are the places in the lab; with labPrefix they name namespaces.
var labNames = []string{"a", "b", "pod-a", "pod-b"}

// Lab is the persistent lab: two hosts with a pod and a twilld each. It exists until
// LabDown.
type Lab struct {
	Wire   netlab.WireKind `json:"wire"`
	PodMTU int             `json:"pod_mtu"`
	Hosts  []LabHost       `json:"hosts"`
}

// LabHost is a host of the lab.
type LabHost struct {
	Name    string     `json:"name"` // "a", "b"
	Addr    netip.Addr `json:"addr"`
	PodAddr netip.Addr `json:"pod_addr"`
	PID     int        `json:"twilld_pid"`
	Socket  string     `json:"control_socket"`
	Log     string     `json:"log"`
}

// ErrNoLab reports that there is no lab.
var ErrNoLab = errors.New("no lab is up (create one with twill-lab up)")

// LabUp creates the lab and returns it. If it fails, it leaves nothing behind.
func LabUp(ctx context.Context, wire netlab.WireKind, bin Binaries) (_ *Lab, err error) {
	if err := needRoot("the lab"); err != nil {
		return nil, err
	}
	if exists(labDir) {
		return nil, errors.New("a lab, or a part of one, already exists; remove it with twill-lab down")
	}
	if err := os.Mkdir(labDir, 0o755); err != nil {
		return nil, fmt.Errorf("create the lab: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(labDir))
		}
	}()
	topo, err := netlab.NewTopology(netlab.Options{Wire: wire, NamePrefix: labPrefix})
	if err != nil {
		return nil, err
	}
	lab, err := populate(ctx, topo, wire, bin)
	if err != nil {
		return nil, errors.Join(err, topo.Close())
	}
	return lab, topo.Detach()
}

// populate starts twilld on the hosts and saves the state of the lab.
func populate(ctx context.Context, topo *netlab.Topology, wire netlab.WireKind, bin Binaries) (*Lab, error) {
	addr := netip.MustParseAddrPort(labHealthz)
	d, err := udpBackend.twilld(bin, topo, labDir,
		"--healthz-ip="+addr.Addr().String(), fmt.Sprintf("--healthz-port=%d", addr.Port()))
	if err != nil {
		return nil, err
	}
	d.attr = &syscall.SysProcAttr{Setsid: true} // the daemons outlive this process and its terminal
	c, err := d.connect(ctx, topo, labDir)
	if err != nil {
		return nil, err
	}
	lab := &Lab{Wire: wire, PodMTU: c.MTU}
	for i, h := range topo.Hosts {
		lab.Hosts = append(lab.Hosts, LabHost{
			Name: h.Letter, Addr: h.Addr, PodAddr: h.Pods[0].Addr,
			PID: c.daemons[i].pid(), Socket: controlSocket(labDir, h), Log: c.daemons[i].log,
		})
	}
	text, err := json.MarshalIndent(lab, "", "  ")
	if err == nil {
		err = os.WriteFile(labState(), append(text, '\n'), 0o644)
	}
	if err != nil {
		for _, p := range c.daemons {
			p.kill()
		}
		return nil, err
	}
	return lab, nil
}

func labLeases() string { return filepath.Join(labDir, leasesName) }

func labState() string { return filepath.Join(labDir, "lab.json") }

// LoadLab returns the lab that is up, or ErrNoLab.
func LoadLab() (*Lab, error) {
	text, err := os.ReadFile(labState())
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoLab
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab's state: %w", err)
	}
	lab := new(Lab)
	if err := json.Unmarshal(text, lab); err != nil {
		return nil, fmt.Errorf("read the lab's state: %s: %w", labState(), err)
	}
	return lab, nil
}

// LabDown removes the lab, or the remains of an interrupted LabUp. It
// returns ErrNoLab if there is nothing to remove.
func LabDown() error {
	if err := needRoot("the lab"); err != nil {
		return err
	}
	if !exists(labDir) {
		return ErrNoLab
	}
	errs := []error{endDaemons(labLeases())}
	for _, name := range labNames {
		errs = append(errs, netlab.RemoveNamed(labPrefix+name))
	}
	return errors.Join(append(errs, os.RemoveAll(labDir))...)
}

// LabExec replaces this process by a program inside one of the lab's places:
// a, b, pod-a or pod-b. It returns only if that fails.
func LabExec(place string, args []string) error {
	if _, err := LoadLab(); err != nil {
		return err
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	ns, err := netlab.OpenNamed(labPrefix + place)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the lab has no %q; want a, b, pod-a or pod-b", place)
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	// The thread that calls execve becomes the process, with its namespace.
	return ns.Do(func() error { return syscall.Exec(program, args, os.Environ()) })
}

// WriteGuide writes instructions for using the lab.
func (l *Lab) WriteGuide(w io.Writer) error {
	a, b := l.Hosts[0], l.Hosts[1]
	payload := l.PodMTU - ipv4HeaderLen - icmpHeaderLen
	_, err := fmt.Fprintf(w, `
  pod-a %s ── a %s ══ wire: %s ══ %s b ── %s pod-b

twill-lab exec pod-a ping -c 3 %[5]s
twill-lab exec pod-a ping -c 3 -M do -s %[6]d %[5]s    # the pods' MTU, %[7]d, exactly
twill-lab exec b tcpdump -ni eth0 udp port 8285
twill-lab exec a curl -s http://%[8]s/metrics
twill-lab status
ip netns exec %[9]spod-a bash
twill-lab down

Leases (edit them, twilld follows) and logs: %[10]s
`, a.PodAddr, a.Addr, l.Wire, b.Addr, b.PodAddr, payload, l.PodMTU, labHealthz, labPrefix, labDir)
	return err
}
