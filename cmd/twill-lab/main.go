// Command twill-lab shows and measures twill's data plane in network namespaces
// of this machine. It runs the twilld binary in its own directory.
package main

import (
	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/version"
)

var program = command.Program{
	Name: "twill-lab",
	About: "twill-lab shows and measures the data plane of twilld in network namespaces of\n" +
		"this machine. Needs root.",
	More:    "The operator's commands are listed by twill --help.",
	Version: version.String,
	Commands: []command.Command{
		{Name: "demo", Summary: "compare twill with kernel VXLAN between two hosts, in one minute and one table", Run: runDemo},
		{Name: "tour", Summary: "follow one packet from pod to pod, each step explained with its tables and bytes", Run: runTour},
		{Name: "up", Summary: "set up two hosts with a pod and a twilld each, until twill-lab down", Run: runUp},
		{Name: "status", Summary: "show twill status of both hosts of the lab", Run: runStatus},
		{Name: "exec", Summary: "run a command on one of its hosts (a, b) or in a pod (pod-a, pod-b)", Run: runExec},
		{Name: "down", Summary: "remove the lab", Run: runDown},
		{Name: "ping", Summary: "ping every millisecond, and count what a restart loses", Run: runPing},
		{Name: "bench", Summary: "measure twill beside other paths between pods", Run: runBench},
	},
}

func main() { program.Main() }
