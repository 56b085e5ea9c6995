//go:build !amd64 && !arm64

package encap

// vectorSum is false: for this architecture there is only the loop in Go.
const (
	vectorSum   = false
	vectorBlock = 64
)

func sumVector(*byte, int) uint64 { panic("encap: no vector loop on this architecture") }
