// Command twilld is the daemon that runs on each node in flanneld's place.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/twillnet/twill/internal/daemon"
)

func main() {
	err := daemon.Run(context.Background(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	if err != nil {
		// Print one line even for joined errors: the output ends up in a log.
		fmt.Fprintln(os.Stderr, "twilld:", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	os.Exit(daemon.ExitCode(err))
}
