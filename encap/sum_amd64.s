#include "textflag.h"

// The words are widened to 64 bits by a mask and a shift rather than by
// VPUNPCK or VPMOVZX: those run on one port only, these on three.

// WIDEN adds the eight 32-bit words of x to the four sums in lo (even words)
// and in hi (odd words). Y8 is the mask of the even words; Y9 is scratch.
#define WIDEN(x, lo, hi) \
	VPAND  Y8, x, Y9   \
	VPSRLQ $32, x, x   \
	VPADDQ Y9, lo, lo  \
	VPADDQ x, hi, hi

// func sumVector(p *byte, n int) uint64
TEXT ·sumVector(SB), NOSPLIT, $0-24
	MOVQ     p+0(FP), SI
	MOVQ     n+8(FP), CX
	VPXOR    Y0, Y0, Y0
	VPXOR    Y1, Y1, Y1
	VPXOR    Y2, Y2, Y2
	VPXOR    Y3, Y3, Y3
	VPCMPEQD Y8, Y8, Y8
	VPSRLQ   $32, Y8, Y8

loop:
	VMOVDQU (SI), Y4
	VMOVDQU 32(SI), Y5
	VMOVDQU 64(SI), Y6
	VMOVDQU 96(SI), Y7
	WIDEN(Y4, Y0, Y1)
	WIDEN(Y5, Y2, Y3)
	WIDEN(Y6, Y0, Y1)
	WIDEN(Y7, Y2, Y3)
	ADDQ    $128, SI
	SUBQ    $128, CX
	JNZ     loop

	VPADDQ       Y1, Y0, Y0
	VPADDQ       Y3, Y2, Y2
	VPADDQ       Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ       X1, X0, X0
	VPSRLDQ      $8, X0, X1
	VPADDQ       X1, X0, X0
	VMOVQ        X0, AX
	VZEROUPPER
	MOVQ         AX, ret+16(FP)
	RET
