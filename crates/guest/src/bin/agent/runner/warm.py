import sys


class Warm(list):
    def __init__(self, *values, **names):
        super().__init__(values)
        self.names = dict(names, sum=sum(values))


warm = Warm(1, 2, 3, text="é", real=0.5)
print(*sorted(warm), f"{warm.names!r:>40}", "%d %s" % (len(warm), [value**2 for value in warm if value > 1]))
print(sys.argv, file=sys.stderr)
try:
    with open("/dev/null") as file:
        {}[file.read()]
except KeyError as error:
    raise ValueError("warm") from error
