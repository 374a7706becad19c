// Floating point as the C library computes and prints it, long double and rounding modes included.
#include <complex.h>
#include <fenv.h>
#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

static volatile double one = 1.0, three = 3.0, halfway = 2.5;

int main(void) {
    double values[] = {0.0, -0.0, 1.0 / 3, 1e300 * 1e10, -DBL_MIN / 8, 123456789.125, 6.02214076e23, NAN};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        printf("%f %e %g %a %.0f %+.3e\n", values[i], values[i], fabs(values[i]),
               ldexp(values[i], 8),  // C leaves open how %a prints a subnormal number
               values[i], values[i]);

    long double ten = 10.0L, root = sqrtl(2.0L);
    printf("%.15Lf %.15Lg %Le\n", root, ten / 7, powl(ten, 300));
    printf("%.17g %.17g %.17g\n", strtod("0.1", 0), strtod("1e-310", 0), strtod("0x1.8p3", 0));
    printf("%.12Lf\n", strtold("3.14159265358979323846", 0) + root);

    double sum = 0;
    for (int i = 1; i < 2000; i++)
        sum += sin(i) * cos(i / 3.0) + exp(-i / 500.0) - log1p(i) + cbrt(i) + tanh(i * 0.001) + fmod(i * 7.5, 3.25);
    printf("sum %.9f\n", sum);
    printf("gamma %.10f erf %.10f j0 %.10f hypot %.10f\n", tgamma(4.5), erf(0.5), j0(1.5), hypot(3, 4));
    double complex z = cexp(I * 1.0) * csqrt(-4.0);
    printf("complex %.10f %.10f\n", creal(z), cimag(z));

    int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    for (int i = 0; i < 4; i++) {
        fesetround(modes[i]);
        double third = one / three;
        printf("round %d %a %a %.0f %ld\n", i, third, -one / three, rint(halfway), lrint(-halfway - one));
    }
    fesetround(FE_TONEAREST);
    volatile double zero = one - one, infinite = one / zero, nan = zero / zero;
    printf("special %d %d %f\n", isinf(infinite) != 0, isnan(nan) != 0, -infinite);

    printf("%d %ld %llu %hhd %zu %jd %05d|%-6d|%+d|%#x|%#o|%c|%10.3s|\n", -5, 1L << 40, ~0ull, (char)200, sizeof(int),
           (intmax_t)-1, 42, 42, 42, 255, 8, 'x', "truncated");
    int a, b;
    char word[16];
    printf("scanned %d:", sscanf("12 0x1f rest", "%d %i %15s", &a, &b, word));
    printf(" %d %d %s\n", a, b, word);
    printf("%ls %lc\n", L"wide", (wint_t)L'w');
    __int128 product = (__int128)INT64_MAX * INT64_MAX;
    printf("%llx %llx\n", (unsigned long long)(product >> 64), (unsigned long long)product);
    printf("%.10g\n", (double)(product / 1000003));
    srand(42);
    printf("random %d\n", rand() == rand());
    return 0;
}
