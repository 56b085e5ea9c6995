package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/twillnet/twill/internal/atomicfile"
	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/lease"
)

const aboutDockerOpts = `Writes the options that make Docker use this node's pod subnet, from the subnet file of
twilld or flanneld, as flannel's mk-docker-opts.sh does. The output is a file for
EnvironmentFile= in Docker's unit. DOCKER_OPT_* environment variables become options,
too. Without -i and -c, both forms are written.`

// dockerOpts holds the options of the command line. The letters and defaults
// are those of mk-docker-opts.sh.
type dockerOpts struct {
	subnetFile string
	dockerFile string
	single     bool // a variable for each option
	combined   bool // all options in the variable key
	key        string
	noIPMasq   bool
}

func runDockerOpts(_ context.Context, c *command.Call) error {
	var o dockerOpts
	c.StringVar(&o.subnetFile, "f", defaultSubnetFile, "`FILE` that the daemon writes")
	c.StringVar(&o.dockerFile, "d", "/run/docker_opts.env", "`FILE` to write, for Docker")
	c.BoolVar(&o.single, "i", false, "write each option as a variable, such as DOCKER_OPT_MTU")
	c.BoolVar(&o.combined, "c", false, "write all options as one variable")
	c.StringVar(&o.key, "k", "DOCKER_OPTS", "`NAME` of that variable")
	c.BoolVar(&o.noIPMasq, "m", false, "omit --ip-masq, which old versions of Docker do not support")
	c.Arguments = splitLetters(c.Arguments)
	if help, err := c.ParseFlags(aboutDockerOpts); help || err != nil {
		return err
	}
	if !variableName.MatchString(o.key) {
		return c.Usagef("-k %q is not a name of a variable", o.key)
	}
	if !o.single && !o.combined {
		o.single, o.combined = true, true
	}
	env, err := readVariables(o.subnetFile)
	if err != nil {
		return err
	}
	text, err := o.text(env, os.Environ())
	if err != nil {
		return fmt.Errorf("docker-opts: %s: %w", o.subnetFile, err)
	}
	if err := checkRoutes(env["FLANNEL_SUBNET"]); err != nil {
		return fmt.Errorf("docker-opts: %w", err)
	}
	if err := atomicfile.Write(o.dockerFile, text, 0o644); err != nil {
		return fmt.Errorf("docker-opts: write %s: %w; name another file with -d", o.dockerFile, err)
	}
	return nil
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// clusters matches arguments that the shell's getopts splits: -ic is -i -c,
// -kNAME is -k NAME.
var clusters = regexp.MustCompile(`^-([icm]*)(?:([fdk])([^=].*)?)?$`)

// splitLetters splits clusters into one argument per option letter.
func splitLetters(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		m := clusters.FindStringSubmatch(args[i])
		if m == nil || args[i] == "-" {
			out = append(out, args[i])
			continue
		}
		for _, letter := range m[1] {
			out = append(out, "-"+string(letter))
		}
		if m[2] == "" {
			continue
		}
		out = append(out, "-"+m[2])
		if m[3] != "" {
			out = append(out, m[3])
		} else if i++; i < len(args) {
			out = append(out, args[i]) // a value, even if it looks like an option
		}
	}
	return out
}

// readVariables reads the subnet file.
func readVariables(path string) (map[string]string, error) {
	env := make(map[string]string)
	err := lease.ReadVariables(path, func(name, value string) error {
		env[name] = value
		return nil
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("docker-opts: %w; check that twilld is ready, or name another file with -f", err)
	case err != nil:
		return nil, fmt.Errorf("docker-opts: %w", err)
	case env["FLANNEL_SUBNET"] == "" && env["FLANNEL_IPV6_SUBNET"] != "":
		return nil, fmt.Errorf("docker-opts: %s: this node has only an IPv6 subnet, but Docker's bridge takes its addresses from an IPv4 subnet (--bip); set EnableIPv4 and Network in the network config", path)
	case env["FLANNEL_SUBNET"] == "":
		return nil, fmt.Errorf("docker-opts: %s: FLANNEL_SUBNET is missing, so Docker would choose its own network; check that twilld is ready, or name another file with -f", path)
	}
	return env, nil
}

// text returns the file for Docker. env holds the variables of the subnet file,
// environ the environment of the process.
func (o *dockerOpts) text(env map[string]string, environ []string) ([]byte, error) {
	opts := make(map[string]string)
	combined := ""
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case strings.HasPrefix(name, "DOCKER_OPT_"):
			opts[name] = value
		case name == o.key && value != "":
			combined = value + " "
		}
	}
	bip := env["FLANNEL_SUBNET"]
	if p, err := netip.ParsePrefix(bip); err != nil || !p.Addr().Is4() {
		return nil, fmt.Errorf("FLANNEL_SUBNET %q: want an IPv4 address with a prefix length", bip)
	}
	opts["DOCKER_OPT_BIP"] = "--bip=" + bip
	if v := env["FLANNEL_MTU"]; v != "" {
		if n, err := strconv.Atoi(v); err != nil || n <= 0 {
			return nil, fmt.Errorf("FLANNEL_MTU %q: want a number of bytes", v)
		}
		opts["DOCKER_OPT_MTU"] = "--mtu=" + v
	}
	if v := env["FLANNEL_IPMASQ"]; v != "" && !o.noIPMasq {
		// Either the daemon or Docker masquerades, not both.
		not, known := map[string]string{"true": "false", "false": "true"}[v]
		if !known {
			return nil, fmt.Errorf("FLANNEL_IPMASQ %q: want true or false", v)
		}
		opts["DOCKER_OPT_IPMASQ"] = "--ip-masq=" + not
	}
	var b []byte
	for _, name := range slices.Sorted(maps.Keys(opts)) {
		if o.single {
			b = fmt.Appendf(b, "%s=%s\n", name, quoteVariable(opts[name]))
		}
		combined += " " + opts[name]
	}
	if o.combined {
		b = fmt.Appendf(b, "%s=%s\n", o.key, quoteVariable(combined))
	}
	return b, nil
}

// quoteVariable quotes a value for the shell and systemd.exec(5). Values from
// the environment may need the escapes.
func quoteVariable(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(value) + `"`
}

// checkRoutes refuses a pod subnet that is routed elsewhere: Docker would not make its
// bridge then. subnet is valid.
func checkRoutes(subnet string) error {
	p := netip.MustParsePrefix(subnet).Masked()
	routes, err := doctor.ForeignRoutes(p)
	if err != nil {
		return err
	}
	for _, r := range routes {
		return fmt.Errorf("packets to this node's subnet %s leave through the route %s; delete it: %s", p, r, r.Delete())
	}
	return nil
}
